"""The options that several commands share, so that one thing has one name, one range and one help text.

Knows typer and nothing of what is measured. What is typed wrongly ends here, before anything is started.
"""

import os
import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer

T = TypeVar("T")


class Quantization(StrEnum):
    NF4 = "nf4"
    FP4 = "fp4"


def parse_url(url: str, option: str) -> str:
    """`url` without a slash at its end. Raises typer.BadParameter, naming `option`, for no address of a server."""
    try:
        address = urlsplit(url)
        good = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # a port out of range, a bracket without its pair
        good = False
    if not good:
        raise typer.BadParameter(f"{url or 'nothing'} is no URL. Write it as http://127.0.0.1:8000.", param_hint=option)
    return url.rstrip("/")


def _checked_url(url: str | None) -> str | None:
    return None if url is None else parse_url(url, "--url")


def writable(folder: Path) -> Path:
    """`folder`, which may not exist yet. Raises typer.BadParameter where no folder can be made or written to."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise typer.BadParameter(f"{there} is a file. Name a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"{there} may not be written to. Name another folder.")
    return folder


def _closed_quotes(flags: str) -> str:
    try:
        shlex.split(flags)
    except ValueError as error:
        raise typer.BadParameter(f"{flags}: {error}.") from error
    return flags


WorkDir = Annotated[
    Path, typer.Option(callback=writable, help="Folder for data directories, adapters and results; made if missing.")
]
WORK_DIR = Path("data/bench")
DataDir = Annotated[
    Path, typer.Option(callback=writable, help="Data directory that keeps converted bases and compiled kernels.")
]
DATA_DIR = Path("data")
Base = Annotated[
    str, typer.Option(help="As --base of `rootstock serve`: embedded, a directory, a .gguf file or an id.")
]
BaseModel = Annotated[
    str,
    typer.Option(
        "--base", "--model", help="As --base of `rootstock serve`: embedded, a directory, a .gguf file or an id."
    ),
]
Url = Annotated[str | None, typer.Option(callback=_checked_url, help="Measure this server instead of starting some.")]
ServeFlags = Annotated[
    str, typer.Option(callback=_closed_quotes, help="More flags for `rootstock serve`, as one string.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Measurements of each kind; one more comes first, to warm up.")]
Minutes = Annotated[
    float | None, typer.Option(min=0, help="Begin no measurement after so many minutes; no limit by default.")
]
Clients = Annotated[int, typer.Option("--concurrency", min=1, help="Clients, each with one request at a time.")]
PerClient = Annotated[int, typer.Option(min=1, help="Requests that each client sends in a measurement.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")]
OutputTokens = Annotated[int, typer.Option(min=2, help="Tokens of each answer.")]
PromptSpan = Annotated[str, typer.Option("--prompt-tokens", help="Tokens of each prompt: 128, or 64-256 to draw.")]
OutputSpan = Annotated[str, typer.Option("--output-tokens", help="Tokens of each answer: 64, or 16-128 to draw.")]
Adapters = Annotated[int, typer.Option(min=1, help="Adapters in the traffic of several; requests take them in turn.")]
AdaptersInBatch = Annotated[
    int, typer.Option("--adapters", min=0, help="Different adapters in the batch, at most one a row; 0 for the base.")
]
Rank = Annotated[int, typer.Option(min=1, max=256, help="Rank of the adapters, which are made for it.")]
Context = Annotated[int, typer.Option(min=1, help="Tokens of each row that are in the KV cache before the step.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the random numbers: the same seed gives the same bytes.")]
BaseFolder = Annotated[
    Path,
    typer.Argument(
        metavar="BASE", exists=True, file_okay=False, help="Directory of the base: config.json and *.safetensors."
    ),
]


def several_clients(default: str) -> Any:
    """The option of a list of numbers of clients, which a command has in turn; `default` is for the help."""
    about = "Clients, each with one request at a time; repeat for several numbers."
    return typer.Option("--concurrency", min=1, show_default=default, help=about)


FOR_ADAPTERS = "adapters are made to its shapes"
FOR_PROMPTS = "prompts are drawn from its vocabulary"


def known_base(directory: Path | None, reason: str) -> Path:
    """`directory`, that of a server's base. Raises typer.BadParameter with `reason` where it is not known."""
    if directory is None:
        raise typer.BadParameter(f"The base's directory is needed: {reason}.")
    return directory


def parse_option(parse: Callable[[str], T], text: str, option: str) -> T:
    """`parse(text)`, the value of `option`. Raises typer.BadParameter where `parse` raises ValueError or OSError."""
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text}: {error}", param_hint=option) from error
    except OSError as error:
        raise typer.BadParameter(f"{text}: {error.strerror}", param_hint=option) from error
