"""`rootstock chat`: a conversation with the base or an adapter, in the terminal.

Owns the loop and the history. Talks HTTP; knows no model.
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.errors import CommandFailed
from server.commands.options import LOCAL, ApiKey, Url

if TYPE_CHECKING:
    from server.commands.client import Client

_HELP = "/model NAME changes the model, /reset forgets the conversation, /quit leaves."


def chat(
    model: Annotated[str, typer.Option("--model", "-m", help="The base or an adapter; the base by default.")] = "",
    system: Annotated[str | None, typer.Option("--system", help="A system message to begin with.")] = None,
    temperature: Annotated[
        float,
        typer.Option("--temperature", min=0, max=2, help="How freely tokens are drawn; 0 always takes the likeliest."),
    ] = 0.7,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of the longest answer.")] = 512,
    url: Url = LOCAL,
    key: ApiKey = None,
) -> None:
    """Talk to a running server. Reads one line a turn; piped input works too."""
    from server.commands.client import Client

    talk = _Talk(Client(url, key), model, system, temperature, max_tokens)
    for line in _lines():
        try:
            if not talk.turn(line):
                return
        except CommandFailed as error:
            if not sys.stdin.isatty():
                raise
            typer.secho(str(error), err=True, fg="red")


class _Talk:
    """One conversation."""

    def __init__(self, client: "Client", model: str, system: str | None, temperature: float, max_tokens: int) -> None:
        self._client, self._model = client, model
        self._options = {"temperature": temperature, "max_tokens": max_tokens, "stream": True}
        self._opening = [{"role": "system", "content": system}] if system else []
        self._history = list(self._opening)

    def turn(self, line: str) -> bool:
        """Answer one line; whether to go on."""
        command, _, argument = line.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command == "/reset":
            self._history = list(self._opening)
        elif command == "/model":
            self._model = argument.strip()
        elif command.startswith("/"):
            typer.echo(_HELP)
        elif line.strip():
            self._answer(line)
        return True

    def _answer(self, line: str) -> None:
        """Stream the answer; a failed turn leaves the history as it was."""
        messages = [*self._history, {"role": "user", "content": line}]
        said = ""
        for event in self._client.stream(
            "/v1/chat/completions", {"model": self._model, "messages": messages, **self._options}
        ):
            for choice in event["choices"]:
                piece = choice["delta"].get("content") or ""
                said += piece
                typer.echo(piece, nl=False)
        typer.echo()
        self._history = [*messages, {"role": "assistant", "content": said}]


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    typer.secho(_HELP, dim=True)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
