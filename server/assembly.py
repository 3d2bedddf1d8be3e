"""Putting one server together: plan the memory, load the base, open the catalog, build the engine.

Owns who is given what. The only module of the server that imports the engine's and the loader's heavy parts.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import torch
from rich.console import Console

from adapters.catalog import Catalog
from adapters.errors import BaseMismatch
from adapters.manifest import AdapterId
from adapters.naming import owner_of
from adapters.provenance import ServedBase
from adapters.registry import Registry
from adapters.sandbox import SandboxedReader
from adapters.sharing import EVERYBODY
from adapters.store import BlobStore
from adapters.tenant_catalog import TenantCatalog
from adapters.uploads import UploadLimits, Uploads
from engine.build import EngineConfig, cuda_graphs, default_batch_tokens, default_block_size, maker
from engine.events import Event, Observer
from engine.recording import Recorder
from engine.worker import EngineWorker
from loader import suitability
from loader.base import Base, load
from loader.dtypes import ITEM_BYTES
from loader.estimate import base_bytes
from loader.fingerprint import fingerprint
from loader.kernels import kernels_for
from loader.memory import available_host_bytes
from loader.plan import Available, Budgets, ServingMemoryPlan, kv_bytes_per_token, kv_spec, plan
from loader.progress import Progress
from loader.source import Source, resolve
from server.datadir import DataDir
from server.grammars.compiler import Compiler
from server.grammars.vocabulary import vocabulary
from server.host_check import HostCheck
from server.meter import Meter
from server.metrics import Metrics
from server.ports import Authenticator, Limits, Services, Traces
from server.routes.uploads import RESERVED
from server.settings import Settings, SettingsError
from server.tokens import HubTokenizer

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything one server runs on. The worker has not been started; the catalog has not been swept."""

    services: Services
    worker: EngineWorker
    registry: Registry


def assemble(
    settings: Settings,
    data: DataDir,
    authenticator: Authenticator,
    host_check: HostCheck,
    meter: Meter,
    progress: Progress,
    console: Console,
    recorder_for: Callable[[Base], Recorder | None] = cuda_graphs,
) -> Runtime:
    """Raises LoaderError when the base cannot be served here, DatabaseUnusable, and SettingsError."""
    traces = traces_of(settings)
    source = resolve(settings.base, data.root, progress)
    memory, max_model_len = _plan(settings, source)
    console.print(memory.table(), highlight=False)
    base = load(
        source,
        dtype=settings.dtype,
        quantization=settings.quantization,
        device=settings.device,
        kernels=kernels_for(settings.device, data.root, progress) if settings.kernels == "auto" else None,
        progress=progress,
    )
    store, metrics = BlobStore(data.blobs), Metrics()
    progress("preparing the engine", None)
    recorder = recorder_for(base) if settings.cuda_graphs else None
    make = maker(base, store, engine_config(settings, memory, max_model_len), _observer(metrics, traces), recorder)
    worker = EngineWorker(make(), make, max_unread=settings.max_unread_tokens)
    if base.kernels is not None:
        base.kernels.release_threads()  # from now on it is the worker's thread that computes
    registry = Registry(data.registry_url)
    served = ServedBase(
        base.shape,
        lambda: fingerprint(source.path, data.root),
        settings.quantization,
        settings.allow_quantization_mismatch,
    )
    reader = SandboxedReader(settings.validation_memory, settings.validation_timeout)
    catalog = Catalog(registry, store, served, RESERVED | {base.id}, reader)
    catalog.in_memory = worker.holds
    services = Services(
        worker=worker,
        server_catalog=catalog,
        tenant_catalog=TenantCatalog(catalog),
        tokenizer=HubTokenizer(base.tokenizer, _vocab_size(base), settings.tool_call_parser),
        grammars=Compiler(partial(vocabulary, base.tokenizer.backend_tokenizer, _vocab_size(base), base.eos_token_ids)),
        base_id=base.id,
        limits=_limits(settings, max_model_len),
        metrics=metrics,
        form_dir=data.uploads,
        uploads=Uploads(data.uploads / "resumable", _upload_limits(settings)),
        adapter_root=settings.adapter_root,
        authenticator=authenticator,
        host_check=host_check,
        traces=traces,
        meter=meter,
    )
    return Runtime(services, worker, registry)


def traces_of(settings: Settings) -> Traces | None:
    """Where a collector is set, by the extra `otel`, which nothing else needs.

    Raises SettingsError, which names the extra to install, before anything heavy is loaded.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from server.traces import exported_to
    except ImportError as error:
        raise SettingsError(
            f"--otlp-endpoint needs OpenTelemetry ({error.name} is not there). In the clone: pip install -e '.[otel]'"
        ) from None
    return exported_to(settings.otlp_endpoint, settings.base)


def _observer(metrics: Metrics, traces: Traces | None) -> Observer:
    if traces is None:
        return metrics.observe

    def both(event: Event) -> None:
        metrics.observe(event)
        traces.observe(event)

    return both


def open_catalog(runtime: Runtime, loop: asyncio.AbstractEventLoop, adapters: Mapping[str, Path]) -> None:
    """Put the store in order, tell the engine of deletions, and add the adapters named at the start.

    Raises InvalidAdapter, BaseMismatch, NameInvalid and their kin for an adapter that cannot be served.
    """
    catalog = runtime.services.server_catalog
    swept = catalog.sweep()
    for version in swept.missing:
        _log.error("adapter_blob_missing", name=version.name, version=version.number, id=version.id)
    for version in swept.corrupt:
        _log.error("adapter_corrupt", name=version.name, version=version.number, id=version.id)
    for version, reason in swept.misfits:
        _log.error("adapter_refused", name=version.name, version=version.number, reason=reason)
    if swept.removed or swept.temporaries:
        _log.info("swept", orphans=len(swept.removed), temporaries=swept.temporaries)

    def forget(id: AdapterId) -> None:
        asyncio.run_coroutine_threadsafe(runtime.worker.forget(id), loop).add_done_callback(_note_failure)

    catalog.on_forgotten = forget
    for name, folder in adapters.items():
        try:
            version, created = catalog.add_directory(name, folder)
        except BaseMismatch as error:
            raise BaseMismatch(f"--adapter {name}={folder}: {error.problem}", error.fix) from None
        if not owner_of(name):
            catalog.share(name, EVERYBODY)  # whoever starts the server means it for its users
        _log.info("adapter_added" if created else "adapter_known", name=name, version=version.number, id=version.id)


def _note_failure(done: "Future[None]") -> None:
    if not done.cancelled() and done.exception() is not None:
        _log.error("forget_failed", exc_info=done.exception())


def _plan(settings: Settings, source: Source) -> tuple[ServingMemoryPlan, int]:
    """What goes where, before anything is loaded, and the context in tokens that fits. Raises DoesNotFit."""
    config = suitability.config_of(source.path)
    longest = suitability.max_model_len(config)
    wished = min(longest, settings.max_model_len or longest)
    memory = plan(
        base_bytes=base_bytes(source.path, settings.dtype, settings.quantization),
        kv_token_bytes=kv_bytes_per_token(kv_spec(config.to_dict()), ITEM_BYTES[settings.dtype]),
        max_model_len=wished,
        available=_available(settings.device),
        budgets=Budgets(settings.kv_cache_memory, settings.adapter_device_memory, settings.adapter_host_memory),
        block_size=settings.block_size or default_block_size(_on_cuda(settings.device)),
    )
    return memory, min(wished, memory.num_blocks * memory.block_size)


def _available(device: str) -> Available:
    host = available_host_bytes() or sys.maxsize
    if not _on_cuda(device):
        return Available(host)
    free, _ = torch.cuda.mem_get_info(None if device in ("auto", "cuda") else torch.device(device))
    return Available(host, free)


def _on_cuda(device: str) -> bool:
    return device != "cpu" and torch.cuda.is_available()


def _limits(settings: Settings, max_model_len: int) -> Limits:
    return Limits(
        max_model_len=max_model_len,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        idle_s=settings.idle_timeout,
    )


def _upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        settings.max_uploads, settings.max_pending_bytes, settings.upload_expiry, settings.max_total_uploads
    )


def engine_config(settings: Settings, memory: ServingMemoryPlan, max_model_len: int) -> EngineConfig:
    return EngineConfig(
        num_blocks=memory.num_blocks,
        max_model_len=max_model_len,
        adapter_device_bytes=memory.adapter_device_bytes,
        adapter_host_bytes=memory.adapter_host_bytes,
        block_size=memory.block_size,
        max_batch_tokens=settings.max_batch_tokens or default_batch_tokens(_on_cuda(settings.device)),
        max_sequences=settings.max_sequences,
        max_waiting=settings.max_waiting,
        device_quota=settings.quota.device_quota,
        tenant_device_quotas={name: own.device_quota for name, own in settings.tenant_quotas().items()},
        tenant_weights={name: own.weight / settings.quota.weight for name, own in settings.tenant_quotas().items()},
    )


def _vocab_size(base: Base) -> int:
    """The rows of the embedding: ids past the tokenizer's last are padding, but they are ids."""
    embedding = base.model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding), "transformers' decoders look tokens up in one table"
    return embedding.num_embeddings
