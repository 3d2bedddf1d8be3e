"""The whole server over a fake worker and a real catalog, and a tiny adapter to upload to it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from safetensors.numpy import save

from adapters.catalog import Catalog
from adapters.checkpoint import Reader, read
from adapters.disk import Disk
from adapters.provenance import ServedBase
from adapters.registry import Registry
from adapters.store import BlobStore
from adapters.tenant_catalog import TenantCatalog
from adapters.uploads import UploadLimits, Uploads
from loader.shape import BaseShape, LinearShape
from server.app import create_app
from server.grammars.compiler import Compiler
from server.host_check import HostCheck
from server.keys.ring import NoKeys
from server.meter import Meter
from server.metrics import Metrics
from server.ports import Authenticator, Grammars, Limits, Services, Tokenizer, Traces
from server.routes.uploads import RESERVED
from tests.support.engine import FakeWorker
from tests.support.tokenizer import ByteTokenizer, byte_vocabulary

BASE = "tiny-base"
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
SHAPE = BaseShape(BASE, 1, {Q: LinearShape(Q, 8, 8), V: LinearShape(V, 8, 4)}, {})

WEIGHTS = f"sha256:{7:064x}"
"""The tiny base's fingerprint."""


@dataclass
class ServerRig:
    """An application and the pieces a test may look at. All that it writes lies under `folder`."""

    app: FastAPI
    services: Services
    worker: FakeWorker
    catalog: Catalog
    registry: Registry
    store: BlobStore
    folder: Path


def served(quantization: str | None = None, allow: bool = False, weights: str = WEIGHTS) -> ServedBase:
    """The tiny base, as `rootstock serve` would describe it to the catalog."""
    return ServedBase(SHAPE, lambda: weights, quantization, allow)


def make_rig(
    folder: Path,
    worker: FakeWorker | None = None,
    limits: Limits | None = None,
    base: ServedBase | None = None,
    authenticator: Authenticator | None = None,
    host_check: HostCheck | None = None,
    traces: Traces | None = None,
    disk: Disk | None = None,
    uploads: UploadLimits | None = None,
    reader: Reader = read,
    meter: Meter | None = None,
    tokenizer: Tokenizer | None = None,
    store: BlobStore | None = None,
    free_bytes: Callable[[], int] | None = None,
    grammars: Grammars | None = None,
) -> ServerRig:
    """A ready application with its data under `folder`. Close `registry` when done."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    worker = worker if worker is not None else FakeWorker()
    registry = Registry(f"sqlite:///{folder / 'data' / 'registry.sqlite'}", disk)
    store = store or BlobStore(folder / "data" / "blobs", disk)
    catalog = Catalog(registry, store, base or served(), RESERVED | {BASE}, reader)
    root = folder / "root"
    root.mkdir(exist_ok=True)
    services = Services(
        worker=worker,
        server_catalog=catalog,
        tenant_catalog=TenantCatalog(catalog),
        tokenizer=tokenizer or ByteTokenizer(),
        grammars=grammars or Compiler(byte_vocabulary),
        base_id=BASE,
        limits=limits if limits is not None else Limits(worker.max_model_len, idle_s=5),
        metrics=Metrics(),
        form_dir=folder / "uploads",
        uploads=Uploads(folder / "uploads" / "resumable", uploads or UploadLimits(), disk=disk, free_bytes=free_bytes),
        adapter_root=root,
        authenticator=authenticator if authenticator is not None else NoKeys(),
        host_check=host_check if host_check is not None else HostCheck(any_host=True),
        traces=traces,
        meter=meter if meter is not None else Meter(),
    )
    services.lifecycle.ready()
    return ServerRig(create_app(services), services, worker, catalog, registry, store, folder)


def adapter_config(rank: int = 2) -> bytes:
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"]}
    return json.dumps(fields | {"bias": "none"}).encode()


def adapter_weights(seed: int = 0, rank: int = 2) -> bytes:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(rank, 8)), random.normal(size=(8, rank))
    prefix = f"base_model.model.{Q}"
    return save({f"{prefix}.lora_A.weight": a.astype("f4"), f"{prefix}.lora_B.weight": b.astype("f4")})


def write_adapter(folder: Path, seed: int = 0) -> Path:
    """A PEFT directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_bytes(adapter_config())
    (folder / "adapter_model.safetensors").write_bytes(adapter_weights(seed))
    return folder


def form(seed: int = 0, rank: int = 2) -> dict[str, tuple[str, bytes, str]]:
    """The two files of an upload, for httpx."""
    return {
        "config": ("adapter_config.json", adapter_config(rank), "application/json"),
        "weights": ("adapter_model.safetensors", adapter_weights(seed, rank), "application/octet-stream"),
    }
