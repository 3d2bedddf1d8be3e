"""The options that several commands share.

Knows typer and nothing of what is measured.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

T = TypeVar("T")

WorkDir = Annotated[Path, typer.Option(help="Data directories, adapters and results go here.")]
WORK_DIR = Path("data/bench")
Base = Annotated[str, typer.Option(help="As --base of `rootstock serve`.")]
ServeFlags = Annotated[str, typer.Option(help="More flags for `rootstock serve`, as one string.")]
Rounds = Annotated[int, typer.Option(min=1, help="One more comes before them, to warm up.")]
Minutes = Annotated[float | None, typer.Option(help="Begin no measurement after so long.")]
Clients = Annotated[int, typer.Option("--concurrency", min=1, help="Clients in a closed loop.")]
SomeClients = Annotated[
    list[int] | None, typer.Option("--concurrency", min=1, help="Clients in a closed loop; repeat for several.")
]
PerClient = Annotated[int, typer.Option(min=1, help="Requests that each client sends in a measurement.")]
PromptTokens = Annotated[int, typer.Option(min=1)]
OutputTokens = Annotated[int, typer.Option(min=2)]
Adapters = Annotated[int, typer.Option(min=1)]
Rank = Annotated[int, typer.Option(min=1, max=256)]


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
    except (ValueError, OSError) as error:
        raise typer.BadParameter(f"{text}: {error}", param_hint=option) from error
