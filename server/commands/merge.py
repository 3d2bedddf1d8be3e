"""`rootstock merge`: base and adapter as one checkpoint, offline.

Owns the command and the choice it asks for: an adapter that was trained on a 4-bit base can be merged into what those
4 bits stand for, or into the original weights. It needs the base's weights, so it takes as long as loading them.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loader.dtypes import Dtype
from server.commands.errors import CommandFailed
from server.commands.options import AdapterDir, BaseOption, DataDirOption, Quantization, data_folder

if TYPE_CHECKING:
    from adapters.checkpoint import Checkpoint
    from loader.progress import Progress
    from loader.source import Source


class Way(StrEnum):
    """What an adapter of a 4-bit base is merged into."""

    quantized = "quantized"
    original = "original"


ABOUT: Mapping[str, str] = {
    "quantized": "dequantize the {0} base, merge in {1}: the layers the adapter was trained on, rounded once",
    "original": "merge into the original {1} base: better weights, but not the ones the adapter was trained on",
}


def merge(
    folder: AdapterDir,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write; must not exist.")],
    base: BaseOption = "embedded",
    way: Annotated[Way | None, typer.Option("--from", help="What an adapter of a 4-bit base is merged into.")] = None,
    heldout: Annotated[
        Path | None,
        typer.Option(
            "--heldout", exists=True, dir_okay=False, help="JSONL as for training: report the loss of each way on it."
        ),
    ] = None,
    quantization: Annotated[
        Quantization | None,
        typer.Option("--quantization", help="Of the base in training, where the adapter's record does not say."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Precision of the checkpoint.")] = "bfloat16",
    data_dir: DataDirOption = None,
) -> None:
    """Write base and adapter as one checkpoint that transformers loads."""
    from rich.console import Console

    from server.screen import loading

    _check_place(out)
    with ExitStack() as stack:
        with loading(Console(stderr=True)) as progress:
            job = _Merge(folder, out, base, dtype, quantization, data_folder(data_dir), progress)
            stack.callback(job.clear)
            chosen = job.choice(way, measured=heldout is not None)
            job.write(job.ways if heldout is not None else (chosen or "original",))
            losses = job.losses(heldout) if heldout is not None else {}
        _print_losses(losses)
        chosen = chosen or _asked(job.question)
        job.publish(chosen)
    typer.echo(f"written to {out}")


def _check_place(out: Path) -> None:
    """Before a base is loaded. Raises CommandFailed where `out` is there already, or cannot be made."""
    if out.exists():
        raise CommandFailed(f"{out} exists already. Name a directory that does not.")
    there = next(path for path in out.absolute().parents if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise CommandFailed(f"{out} cannot be made in {there}. Name OUT in a directory that you may write to.")


class _Merge:
    """One merge: every way is written beside `out` first, and one of them becomes `out` by rename."""

    def __init__(
        self, folder: Path, out: Path, base: str, dtype: str, quantization: str | None, data: Path, progress: "Progress"
    ) -> None:
        from loader.source import resolve

        self._folder, self._out, self._dtype, self._progress = folder, out, dtype, progress
        self._base, self._data = base, data
        self._source = resolve(base, data, progress)
        self._checkpoint = _checked(folder, self._source, data)
        self._quantization = _trained_in(self._checkpoint, quantization)

    @property
    def ways(self) -> tuple[str, ...]:
        return ("original",) if self._quantization is None else ("quantized", "original")

    @property
    def question(self) -> str:
        lines = [f"  --from {way}: {ABOUT[way].format(self._quantization, self._dtype)}" for way in self.ways]
        return "\n".join([f"This adapter was trained on a base in {self._quantization}. Choose:", *lines])

    def choice(self, way: Way | None, measured: bool) -> str | None:
        """The way to take, or None if it is asked for after measuring. Raises CommandFailed when it must be given."""
        if self._quantization is None:
            if way is Way.quantized:
                raise CommandFailed(
                    "Nothing says that this adapter was trained on a 4-bit base. Leave out --from quantized, or name "
                    "the base's type with --quantization nf4."
                )
            return "original"
        if way is None and not measured and not sys.stdin.isatty():
            raise CommandFailed(f"{self.question}\n--heldout FILE measures both.")
        return None if way is None else way.value

    def write(self, ways: Sequence[str]) -> None:
        from adapters.merge import write_merged
        from loader.base import load
        from loader.dequantize import load_dequantized

        for way in ways:
            if way == "quantized":
                assert self._quantization is not None
                loaded = load_dequantized(
                    self._source, dtype=self._dtype, quantization=self._quantization, progress=self._progress
                )
            else:
                loaded = load(self._source, dtype=self._dtype, device="cpu", progress=self._progress)
            self._progress(f"merging into the {way} weights", None)
            write_merged(loaded, self._checkpoint, self._aside(way))

    def losses(self, heldout: Path) -> dict[str, float]:
        """Loss of base + adapter and of each way on the held-out file, in nats per token that counts."""
        from server.heldout import Heldout

        data = Heldout.read(heldout, self._base, self._data, self._progress)
        found = {"base + adapter": data.loss(self._base, self._folder, self._dtype, self._quantization)}
        for way in self.ways:
            name = f"merged, from {way}" if self._quantization else "merged"
            found[name] = data.loss(str(self._aside(way)), None, self._dtype, None)
        return found

    def publish(self, way: str) -> None:
        self._aside(way).rename(self._out)

    def clear(self) -> None:
        for way in self.ways:
            shutil.rmtree(self._aside(way), ignore_errors=True)

    def _aside(self, way: str) -> Path:
        return self._out.with_name(f".{self._out.name}.{way}-{os.getpid()}")


def _checked(folder: Path, source: "Source", data: Path) -> "Checkpoint":
    """The adapter, if it was trained on these weights; how they were quantized is for the merge to handle."""
    from adapters.checkpoint import read_directory
    from adapters.provenance import ServedBase
    from loader import skeleton
    from loader.fingerprint import fingerprint

    shape = skeleton.shape(source)
    checkpoint = read_directory(folder, shape)
    base = ServedBase(shape, lambda: fingerprint(source.path, data), allow_other_quantization=True)
    base.check(checkpoint.manifest)
    return checkpoint


def _trained_in(checkpoint: "Checkpoint", typed: str | None) -> str | None:
    """The base's 4-bit type in training, by the adapter's record or, where there is none, as it was typed."""
    record = checkpoint.manifest.trained_on
    recorded = None if record is None or record.quantization == "none" else record.quantization
    if record is not None and typed is not None and typed != recorded:
        raise CommandFailed(
            f"The adapter's record says that its base had quantization {record.quantization}, not {typed}. "
            "Leave out --quantization."
        )
    return typed or recorded


def _print_losses(losses: Mapping[str, float]) -> None:
    if losses:
        typer.echo("held-out loss, nats per token that counts:")
    for name, loss in losses.items():
        typer.echo(f"  {name:<24} {loss:.4f}")


def _asked(question: str) -> str:
    """Ask on a terminal; elsewhere, the losses have been told and the choice must be typed."""
    if not sys.stdin.isatty():
        raise CommandFailed(question)
    typer.echo(question)
    answer: str = typer.prompt("from", type=Way).value
    return answer
