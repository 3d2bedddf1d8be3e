"""The strict reader of PEFT's format: a config and a safetensors file in, a checked description out, or every fault.

Owns the comparison of what the config and the base call for with what the file holds. Knows no torch, and never
changes or keeps the weights: `Checkpoint` says where they lie.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters import config as config_file
from adapters import header
from adapters.canonical import canonical_config, manifest_dtype
from adapters.config import Settings, read_config
from adapters.errors import Fault, InvalidAdapter, UnsupportedMedia
from adapters.expected import compare, expected_tensors
from adapters.finite import NonFinite
from adapters.header import TensorSpec, read_header
from adapters.identity import digest
from adapters.layout import Layout
from adapters.manifest import Manifest, TrainedOn
from adapters.provenance import trained_on
from adapters.targets import Planned, derive
from loader.shape import BaseShape

TENSORS_PER_LINEAR = 3
_PICKLED = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A readable adapter. `config` is a PEFT config reduced to what matters; `tensors` lie in the file `weights`.

    `layout` is the plan for reading them, where somebody has made one.
    """

    manifest: Manifest
    config: bytes
    weights: Path
    tensors: Mapping[str, TensorSpec]
    layout: Layout | None = None


Reader = Callable[[bytes, Path, BaseShape], Checkpoint]
"""`read`, or what reads as it does elsewhere."""


def read_directory(path: Path, shape: BaseShape, reader: Reader | None = None) -> Checkpoint:
    """As `read`, from a directory that PEFT's save_pretrained wrote; its other files are not looked at."""
    config, weights = path / config_file.FILE, path / header.FILE
    if not weights.is_file():
        found = [name for name in _PICKLED if (path / name).exists()]
        if found:
            fix = "Pickles can run code when they are opened. Save with save_pretrained(..., safe_serialization=True)"
            raise UnsupportedMedia([Fault(found[0], "pickled weights are refused, expected safetensors", fix)])
    missing = [file.name for file in (config, weights) if not file.is_file()]
    if missing:
        fix = "Name a directory that PEFT's save_pretrained wrote"
        raise InvalidAdapter([Fault(name, "there is no such file in the directory", fix) for name in missing])
    with config.open("rb") as file:
        raw = file.read(config_file.MAX_BYTES + 1)
    return (reader or read)(raw, weights, shape)


def read(config: bytes, weights: Path, shape: BaseShape) -> Checkpoint:
    """The adapter for a base of this `shape`. Reads the weights once, a few MiB at a time.

    Raises InvalidAdapter with all faults of both files together, or UnsupportedMedia when `weights` is not safetensors.
    """
    settings, faults = read_config(config)
    planned: tuple[Planned, ...] = ()
    if settings is not None:
        planned, more = derive(settings, shape)
        faults += more
    tensors, record, more = _weights(weights, shape)
    faults += more
    if settings is None or not planned or not tensors:
        raise InvalidAdapter([*faults, *_non_finite(weights, tensors)])
    checked = _checked(settings, planned, weights, tensors, shape, faults)
    return replace(checked, manifest=replace(checked.manifest, trained_on=record))


def _weights(weights: Path, shape: BaseShape) -> tuple[Mapping[str, TensorSpec], TrainedOn | None, tuple[Fault, ...]]:
    """The tensors, and what the file says of the base it was trained on."""
    try:
        found = read_header(weights, TENSORS_PER_LINEAR * len(shape.linears))
    except UnsupportedMedia:
        raise
    except InvalidAdapter as error:
        return {}, None, error.faults
    try:
        return found.tensors, trained_on(found.metadata), ()
    except ValueError as error:
        fix = "Save the adapter with the trainer that wrote the record, or remove both entries"
        return found.tensors, None, (Fault(f"{header.FILE}: __metadata__", str(error), fix),)


def _non_finite(weights: Path, tensors: Mapping[str, TensorSpec]) -> tuple[Fault, ...]:
    """What can be said of the weights when the config does not tell which tensors there should be."""
    non_finite = NonFinite()
    digest("lora", (), weights, tensors, non_finite)
    return tuple(non_finite.faults())


def _checked(
    settings: Settings,
    planned: Sequence[Planned],
    weights: Path,
    tensors: Mapping[str, TensorSpec],
    shape: BaseShape,
    faults: tuple[Fault, ...],
) -> Checkpoint:
    grafts = tuple(item.graft for item in planned)
    expected = expected_tensors(grafts)
    faults += tuple(compare(expected, tensors, settings.base, shape))
    usable = {name: spec for name, spec in tensors.items() if expected.get(name) == spec.shape}
    non_finite = NonFinite()
    id = digest(settings.kind, grafts, weights, usable, non_finite)
    faults += tuple(non_finite.faults())
    if faults:
        raise InvalidAdapter(faults)
    manifest = Manifest(
        id=id,
        kind=settings.kind,
        rank=max(graft.rank for graft in grafts),
        targets=tuple(sorted({graft.path.rsplit(".", 1)[-1] for graft in grafts})),
        grafts=grafts,
        dtype=manifest_dtype(spec.dtype for spec in tensors.values()),
        base=settings.base,
    )
    return Checkpoint(manifest, canonical_config(planned, settings.kind, settings.base), weights, tensors)
