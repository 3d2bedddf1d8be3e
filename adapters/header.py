"""The safetensors format: where each tensor's bytes lie in a file, checked before anything relies on it.

Owns our own strict parser and writer of the header (format: https://github.com/huggingface/safetensors#format).
It reads only the header, never allocates by what the header claims, and knows no adapters and no numpy.
"""

import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapters.errors import Fault, InvalidAdapter, UnsupportedMedia, listed, quoted
from adapters.strict_json import Json, StrictJSONError, parse

FILE = "adapter_model.safetensors"
MAX_HEADER_BYTES = 8 << 20
CHUNK_BYTES = 4 << 20
READ_BYTES = 64 << 10
"""What is asked of the system at once: the disk then brings the next bytes while these are looked at."""
AHEAD_BYTES = 4 << 20
"""What a disk is asked for ahead of whoever reads: at first while a request finds its way to a thread; asking for more
takes time itself."""
ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_SAVE_AGAIN = "Save the adapter again with PEFT's save_pretrained, and check that the upload was complete"
_PICKLE = "Pickles can run code when they are opened. Save with save_pretrained(..., safe_serialization=True)"
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer",
        "Run 'git lfs pull' where you cloned it, and upload the real file",
    ),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch pickle", _PICKLE),
    (b"\x80\x02", "a pickle", _PICKLE),
    (b"\x80\x03", "a pickle", _PICKLE),
    (b"\x80\x04", "a pickle", _PICKLE),
    (b"\x80\x05", "a pickle", _PICKLE),
    (b"GGUF", "a GGUF file", "Upload the PEFT directory that it was converted from"),
    (b"\x93NUMPY", "a numpy array", _SAVE_AGAIN),
    (b"\x89HDF", "an HDF5 file", _SAVE_AGAIN),
    (b"\x1f\x8b", "a gzip file", "Unpack it, and upload the safetensors file inside"),
    (b"<!DOCTYPE", "a web page", "Download the file itself, not the page that shows it"),
    (b"<html", "a web page", "Download the file itself, not the page that shows it"),
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: `dtype` as safetensors calls it (F32, BF16), its bytes at [`start`, `stop`) of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A file's tensors by name, and the notes that whoever saved it left beside them."""

    tensors: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]


def read_header(path: Path, max_tensors: int) -> Header:
    """What the file holds. Raises UnsupportedMedia for other formats, else InvalidAdapter with every fault.

    Stricter than the library: no duplicate keys, no empty tensors, no header larger than `max_tensors` could need.
    """
    return parse_header(*read_raw(path, max_tensors), max_tensors)


def parse_header(size: int, raw: bytes, max_tensors: int) -> Header:
    """As `read_header`, of a file of `size` bytes whose header's text is `raw`."""
    try:
        header = parse(raw, MAX_HEADER_BYTES)
    except StrictJSONError as error:
        raise _broken(f"the header is not valid: {error}") from None
    if not isinstance(header, dict):
        raise _broken("the header is not a JSON object")
    metadata, faults = _metadata(header.pop("__metadata__", {}))
    if len(header) > max_tensors:
        problem = f"{len(header)} tensors, expected at most {max_tensors}"
        raise InvalidAdapter([*faults, Fault(FILE, problem, "Upload the adapter alone, not the model it belongs to")])
    data = 8 + len(raw)
    found: dict[str, TensorSpec] = {}
    for name, entry in header.items():
        spec = _spec(entry, data)
        if isinstance(spec, str):
            faults.append(Fault(f"{FILE}: {quoted(name)}", spec, _SAVE_AGAIN))
        else:
            found[name] = spec
    if not faults:
        faults.extend(_layout_faults(found, data, size))
    if faults:
        raise InvalidAdapter(faults)
    return Header(found, metadata)


def write_header(
    tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, TensorSpec]]:
    """The header of a new file that holds `tensors` in the mapping's order, and where they then lie.

    `metadata` comes beside the format's own entry. Equal arguments give equal bytes.
    """
    entries: dict[str, Json] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at, offsets = 0, {}
    for name, spec in tensors.items():
        offsets[name] = at
        at += spec.stop - spec.start
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offsets[name], at]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = 8 + len(text)
    moved = {
        name: TensorSpec(spec.dtype, spec.shape, data + offsets[name], data + offsets[name] + spec.stop - spec.start)
        for name, spec in tensors.items()
    }
    return struct.pack("<Q", len(text)) + text, moved


def opened(path: Path) -> BinaryIO:
    """A file for `chunks`; whoever takes the tensors as they lie in it reads it once, from its beginning to its end."""
    return path.open("rb", buffering=READ_BYTES)


def chunks(file: BinaryIO, spec: TensorSpec) -> Iterator[bytes]:
    """The tensor's bytes, a few MiB at a time. Raises InvalidAdapter when the file has become shorter."""
    file.seek(spec.start)
    left = spec.stop - spec.start
    while left:
        wanted = min(left, CHUNK_BYTES)
        chunk = file.read(wanted)
        if len(chunk) != wanted:
            raise _broken("the file became shorter while it was being read")
        left -= wanted
        yield chunk


def read_ahead(path: Path) -> None:
    """Have the system begin to read the file, so that it is there sooner for whoever opens it next, and is told what
    goes wrong. Returns at once; where the system cannot be asked, nothing happens."""
    with suppress(OSError), path.open("rb", buffering=0) as file:
        will_read(file, 0, AHEAD_BYTES)


def will_read(file: BinaryIO, start: int, stop: int) -> None:
    """The same for bytes [`start`, `stop`) of a file that is open."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)


def read_into(file: BinaryIO, start: int, content: memoryview) -> None:
    """Fill `content` from byte `start` on; `file` is open without a buffer. Raises InvalidAdapter as `chunks` does."""
    file.seek(start)
    done = 0
    while done < len(content):
        count = file.readinto(content[done:])  # type: ignore[attr-defined]
        if not count:
            raise _broken("the file became shorter while it was being read")
        done += count


def read_raw(path: Path, max_tensors: int) -> tuple[int, bytes]:
    """The file's size and the header's text. Raises as `read_header` does."""
    limit = min(MAX_HEADER_BYTES, (1 << 20) + 512 * max_tensors)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _broken("it is not a regular file")
        start = file.read(64)
        _check_magic(start)
        if len(start) < 10:
            raise _broken(f"it is {status.st_size} bytes, too short to be safetensors")
        (length,) = struct.unpack("<Q", start[:8])
        if length > status.st_size - 8:
            raise _broken(f"the header claims {length} bytes, the file has {status.st_size - 8} after its length")
        if length > limit:
            raise _broken(f"the header is {length} bytes, expected at most {limit} for this base")
        file.seek(8)
        raw = file.read(length)
        if len(raw) != length or raw[:1] != b"{":
            raise _broken("the header does not begin with '{'")
        return status.st_size, raw


def _check_magic(start: bytes) -> None:
    # A safetensors header may have any length, so its first bytes can look like a pickle's; its ninth is always '{'.
    if start[8:9] == b"{":
        return
    for magic, what, fix in _FOREIGN:
        if start.startswith(magic):
            raise UnsupportedMedia([Fault(FILE, f"it is {what}, expected safetensors", fix)])


def _metadata(value: Json) -> tuple[dict[str, str], list[Fault]]:
    """Notes from whoever saved the file; what they mean is for others to judge."""
    notes = {name: note for name, note in value.items() if isinstance(note, str)} if isinstance(value, dict) else {}
    if not isinstance(value, dict) or len(notes) < len(value):
        return {}, [Fault(f"{FILE}: __metadata__", "expected an object of strings", _SAVE_AGAIN)]
    return notes, []


def _spec(entry: Json, data: int) -> TensorSpec | str:
    """The tensor that one header entry describes, or what is wrong with the entry by itself."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "expected exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], _naturals(entry["shape"]), _naturals(entry["data_offsets"])
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"unknown dtype {quoted(dtype, 40)}"
    if shape is None or len(shape) > 8:
        return f"expected a shape of at most 8 dimensions, got {quoted(entry['shape'], 60)}"
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"expected data_offsets [start, stop], got {quoted(entry['data_offsets'], 60)}"
    size = ITEM_BYTES[dtype]
    for dimension in shape:
        size *= dimension
    if size == 0:
        return f"shape {list(shape)} is empty"
    if size != offsets[1] - offsets[0]:
        return f"{dtype} of shape {list(shape)} takes {size} bytes, data_offsets span {offsets[1] - offsets[0]}"
    return TensorSpec(dtype, shape, data + offsets[0], data + offsets[1])


def _naturals(value: Json) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    numbers = tuple(item for item in value if isinstance(item, int) and not isinstance(item, bool) and item >= 0)
    return numbers if len(numbers) == len(value) else None


def _layout_faults(tensors: Mapping[str, TensorSpec], data: int, size: int) -> Iterator[Fault]:
    """Tensors must fill the file from the header to the end, without holes and without sharing a byte."""
    if not tensors:
        yield Fault(FILE, "it holds no tensors", _SAVE_AGAIN)
        return
    at = data
    overlapping, holes = [], []
    for name, spec in sorted(tensors.items(), key=lambda item: item[1].start):
        if spec.start < at:
            overlapping.append(name)
        elif spec.start > at:
            holes.append(name)
        at = max(at, spec.stop)
    if overlapping:
        yield Fault(FILE, f"tensors overlap others: {listed(overlapping)}", _SAVE_AGAIN)
    if holes:
        yield Fault(FILE, f"unused bytes before tensors: {listed(holes)}", _SAVE_AGAIN)
    if at != size:
        yield Fault(FILE, f"the tensors end at byte {at}, the file at byte {size}", _SAVE_AGAIN)


def _broken(problem: str) -> InvalidAdapter:
    return InvalidAdapter([Fault(FILE, problem, _SAVE_AGAIN)])
