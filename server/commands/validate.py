"""`rootstock validate`: the server's own reader and its verdict on the base, without a server.

Owns that command. The base's shapes come from its config; its weights are hashed only when the adapter has a record.
"""

from typing import Annotated

import typer

from loader.memory import format_bytes
from server.commands.errors import CommandFailed
from server.commands.options import (
    AdapterDir,
    BaseOption,
    DataDirOption,
    Json,
    Quantization,
    data_folder,
    print_json,
)


def validate(
    folder: AdapterDir,
    base: BaseOption = "embedded",
    quantization: Annotated[
        Quantization | None,
        typer.Option(
            "--quantization", envvar="ROOTSTOCK_QUANTIZATION", help="Of the base, as served; none by default."
        ),
    ] = None,
    allow_quantization_mismatch: Annotated[
        bool, typer.Option("--allow-quantization-mismatch", help="As for `rootstock serve`.")
    ] = False,
    data_dir: DataDirOption = None,
    as_json: Json = False,
) -> None:
    """Check an adapter against a base, offline, and list every fault."""
    from adapters.checkpoint import read_directory
    from adapters.errors import BaseMismatch, InvalidAdapter
    from adapters.provenance import ServedBase
    from loader import skeleton
    from loader.fingerprint import fingerprint
    from loader.source import resolve

    data = data_folder(data_dir)
    source = resolve(base, data)
    shape = skeleton.shape(source)
    served = ServedBase(shape, lambda: fingerprint(source.path, data), quantization, allow_quantization_mismatch)
    try:
        checkpoint = read_directory(folder, shape)
        served.check(checkpoint.manifest)
    except (InvalidAdapter, BaseMismatch) as error:
        if as_json:
            print_json({"valid": False, "faults": _faults(error)})
            raise typer.Exit(1) from None
        raise CommandFailed(str(error)) from None
    manifest, size = checkpoint.manifest, checkpoint.weights.stat().st_size
    record = manifest.trained_on
    if as_json:
        about = {"valid": True, "id": manifest.id, "kind": manifest.kind, "rank": manifest.rank, "bytes": size}
        origin = {"base_weights": record and record.weights, "base_quantization": record and record.quantization}
        print_json(about | {"targets": list(manifest.targets), "base": shape.base_id} | origin)
        return
    targets = " ".join(manifest.targets)
    typer.echo(f"valid for {shape.base_id}: {manifest.kind}, rank {manifest.rank}, {format_bytes(size)}, on {targets}")
    typer.echo(manifest.id)
    typer.echo(
        "no record of the base it was trained on"
        if record is None
        else f"trained on these weights, quantization {record.quantization}"
    )


def _faults(error: Exception) -> list[dict[str, str]]:
    from adapters.errors import BaseMismatch, InvalidAdapter

    if isinstance(error, InvalidAdapter):
        return [{"where": fault.where, "problem": fault.problem, "fix": fault.fix} for fault in error.faults]
    assert isinstance(error, BaseMismatch)
    return [{"where": "base", "problem": error.problem, "fix": error.fix}]
