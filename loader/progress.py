"""How the loader tells what it is doing, to whoever draws it.

Owns one callable type; knows no terminal.
"""

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""`progress(what, done)`: `what` is a short phrase, `done` in 0..1, or None where the end is not known."""


def ignore(what: str, done: float | None) -> None:
    """The progress that nobody watches."""
