"""`rootstock validate` and `rootstock merge`: work on directories, without a server.

Owns those commands. `validate` reads with the server's own reader against the base's real shapes;
`merge` needs the base's weights, so it takes as long as loading them.
"""

from pathlib import Path
from typing import Annotated

import typer

from server.commands.errors import CommandFailed
from server.commands.options import BaseOption, DataDirOption, Json, human_bytes, print_json

AdapterDir = Annotated[Path, typer.Argument(metavar="DIR", help="A directory that PEFT saved.")]


def validate(
    folder: AdapterDir, base: BaseOption = "embedded", data_dir: DataDirOption = None, as_json: Json = False
) -> None:
    """Check an adapter against a base, offline, and list every fault."""
    from adapters.checkpoint import read_directory
    from adapters.errors import InvalidAdapter
    from loader import skeleton
    from loader.source import resolve

    shape = skeleton.shape(resolve(base, _data_dir(data_dir)))
    try:
        checkpoint = read_directory(folder, shape)
    except InvalidAdapter as error:
        if as_json:
            faults = [{"where": fault.where, "problem": fault.problem, "fix": fault.fix} for fault in error.faults]
            print_json({"valid": False, "faults": faults})
            raise typer.Exit(1) from None
        raise CommandFailed(str(error)) from None
    manifest, size = checkpoint.manifest, checkpoint.weights.stat().st_size
    about = {"valid": True, "id": manifest.id, "kind": manifest.kind, "rank": manifest.rank, "bytes": size}
    if as_json:
        print_json(about | {"targets": list(manifest.targets), "base": shape.base_id})
        return
    targets = " ".join(manifest.targets)
    typer.echo(f"valid for {shape.base_id}: {manifest.kind}, rank {manifest.rank}, {human_bytes(size)}, on {targets}")
    typer.echo(manifest.id)


def merge(
    folder: AdapterDir,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write; must not exist.")],
    base: BaseOption = "embedded",
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16, float16 or float32.")] = "bfloat16",
    data_dir: DataDirOption = None,
) -> None:
    """Write base and adapter as one checkpoint that transformers loads."""
    from rich.console import Console

    from adapters.checkpoint import read_directory
    from adapters.merge import write_merged
    from loader.base import load
    from loader.source import resolve
    from server.screen import loading

    if out.exists():
        raise CommandFailed(f"{out} exists already. Name a directory that does not.")
    with loading(Console(stderr=True)) as progress:
        loaded = load(resolve(base, _data_dir(data_dir), progress), dtype=dtype, device="cpu", progress=progress)
        checkpoint = read_directory(folder, loaded.shape)
        progress("merging", None)
        write_merged(loaded, checkpoint, out)
    typer.echo(f"written to {out}")


def _data_dir(given: Path | None) -> Path:
    from server.settings import read_settings

    return given if given is not None else read_settings({}).data_dir
