"""What the server asks of the process that reads an upload, and its result: a checkpoint or every fault, as JSON.

Owns that encoding. Both processes are of the same release, so anything unexpected is our bug.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from adapters.checkpoint import Checkpoint
from adapters.errors import Fault, InvalidAdapter, UnsupportedMedia
from adapters.header import TensorSpec
from adapters.manifest import TrainedOn
from adapters.manifest_json import manifest_from_json, manifest_to_json
from loader.shape import BaseShape, LinearShape


def request_to_json(config: bytes, weights: Path, shape: BaseShape) -> bytes:
    """latin-1 carries any bytes through JSON: whether the config is UTF-8 is for the reader to judge."""
    request = {"config": config.decode("latin-1"), "weights": str(weights), "shape": asdict(shape)}
    return json.dumps(request).encode()


def request_from_json(text: bytes) -> tuple[bytes, Path, BaseShape]:
    request = json.loads(text)
    shape = request["shape"]
    linears = {path: LinearShape(**linear) for path, linear in shape["linears"].items()}
    shape = BaseShape(shape["base_id"], shape["num_layers"], linears, shape["refused"])
    return request["config"].encode("latin-1"), Path(request["weights"]), shape


def checkpoint_to_json(checkpoint: Checkpoint) -> bytes:
    record = checkpoint.manifest.trained_on
    fields = {
        "manifest": manifest_to_json(checkpoint.manifest),
        "trained_on": record and asdict(record),
        "config": checkpoint.config.decode(),
        "tensors": {name: [spec.dtype, spec.shape, spec.start, spec.stop] for name, spec in checkpoint.tensors.items()},
    }
    return json.dumps(fields).encode()


def faults_to_json(error: InvalidAdapter) -> bytes:
    faults = [[fault.where, fault.problem, fault.fix] for fault in error.faults]
    return json.dumps({"unsupported": isinstance(error, UnsupportedMedia), "faults": faults}).encode()


def result_from_json(text: bytes, weights: Path) -> Checkpoint:
    """The checkpoint that was found in `weights`. Raises InvalidAdapter or UnsupportedMedia, as the child did."""
    result: dict[str, Any] = json.loads(text)
    if "faults" in result:
        kind = UnsupportedMedia if result["unsupported"] else InvalidAdapter
        raise kind(Fault(*fault) for fault in result["faults"])
    manifest, record = manifest_from_json(result["manifest"]), result["trained_on"]
    tensors = {
        name: TensorSpec(dtype, tuple(shape), start, stop)
        for name, (dtype, shape, start, stop) in result["tensors"].items()
    }
    manifest = replace(manifest, trained_on=record and TrainedOn(**record))
    return Checkpoint(manifest, result["config"].encode(), weights, tensors)
