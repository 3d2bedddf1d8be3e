"""What a fuzzer feeds: the parsers that meet a stranger's bytes first, each with seeds to begin from.

Owns the one rule of these targets: any bytes give a value or faults in bounded words, never another exception. Knows no
fuzzer.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.config import read_config
from adapters.errors import InvalidAdapter
from adapters.header import read_header
from tests.support.server_rig import adapter_config, adapter_weights

MOST_TENSORS = 64


@dataclass(frozen=True, slots=True)
class Target:
    """`parse` raises whatever is a bug."""

    parse: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def header(data: bytes) -> None:
    """The safetensors header. What it accepts lies within the file, without an overlap."""
    handle, name = tempfile.mkstemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        try:
            tensors = read_header(Path(name), MOST_TENSORS).tensors
        except InvalidAdapter as error:
            check_told(error)
            return
    finally:
        os.unlink(name)
    spans = sorted((spec.start, spec.stop) for spec in tensors.values())
    assert spans and spans[-1][1] == len(data)
    assert all(stop == start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False))


def config(data: bytes) -> None:
    """adapter_config.json."""
    settings, faults = read_config(data)
    assert settings is not None or faults
    if faults:
        check_told(InvalidAdapter(faults))


def check_told(error: InvalidAdapter) -> None:
    """Every fault has its three parts, and the message is bounded."""
    assert len(str(error)) < 20_000
    assert all(fault.where and fault.problem and fault.fix for fault in error.faults)


TARGETS: Mapping[str, Target] = {
    "header": Target(header, (adapter_weights(), adapter_weights(rank=1), b"", b"\x08\0\0\0\0\0\0\0{}      ")),
    "config": Target(config, (adapter_config(), b"{}", b'{"peft_type": "LORA", "r": 8}')),
}
