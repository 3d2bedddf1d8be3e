"""The options that several commands share, and how results are printed.

Knows typer and rich; knows no server.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from loader.memory import format_bytes

LOCAL = "http://127.0.0.1:8000"
Quantization = Literal["nf4", "fp4"]


def checked_url(url: str | None) -> str | None:
    """`url` as it was typed. Raises typer.BadParameter for what is no address of a server."""
    if url is None:
        return None
    try:
        address = urlsplit(url)
        good = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # a port out of range, a bracket without its pair
        good = False
    if not good:
        raise typer.BadParameter(f"{url or 'nothing'} is no URL. Write it as {LOCAL}.")
    return url


Url = Annotated[
    str, typer.Option("--url", envvar="ROOTSTOCK_URL", callback=checked_url, help="The running server to talk to.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="ROOTSTOCK_API_KEY",
        help="The key that the server asks for. Better in the environment: flags are seen by others.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
AdapterDir = Annotated[Path, typer.Argument(metavar="DIR", help="A directory that PEFT saved.")]
AdapterName = Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name.")]
AliasOption = Annotated[str, typer.Option("--alias", help="The alias that clients name.")]
BaseOption = Annotated[
    str,
    typer.Option(
        "--base",
        envvar="ROOTSTOCK_BASE",
        help="As for `rootstock serve`: embedded, a directory, a .gguf file or an id.",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="ROOTSTOCK_DATA_DIR",
        help="The server's data directory, which keeps converted bases; the server's own default.",
    ),
]


def data_folder(given: Path | None) -> Path:
    """The data directory: the one that was typed, else the server's own default."""
    from server.settings import read_settings

    return given if given is not None else read_settings({}).data_dir


def print_json(value: object) -> None:
    """Plain JSON on standard output, whatever the terminal."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_cards(cards: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "version", "aliases", "kind", "rank", "targets", "size", "state", "id"):
        table.add_column(
            column, overflow="fold", no_wrap=column != "targets", min_width=8 if column == "targets" else None
        )
    for card in cards:
        state = "refused" if card["refused"] else card["state"] + (", pinned" if card["pinned"] else "")
        shares = (f"{alias} {weight:.0%}" for alias, weight in card["canary"].items())
        aliases, targets = " ".join((*card["aliases"], *shares)), " ".join(card["targets"])
        size, digest = format_bytes(card["bytes"]), card["id"].removeprefix("sha256:")[:12]
        table.add_row(
            card["name"], str(card["version"]), aliases, card["kind"], str(card["rank"]), targets, size, state, digest
        )
    console = Console()
    console.print(table) if console.is_terminal else Console(width=240).print(table)
