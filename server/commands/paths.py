"""The paths of an adapter's routes, as commands call them.

Owns the quoting of names, so that one with a slash or a question mark in it reaches the server as it was typed.
"""

from urllib.parse import quote


def adapter_path(name: str, *more: str) -> str:
    """`adapter_path("sql", "aliases", "prod")` is `/v1/adapters/sql/aliases/prod`; `name` may hold a selector."""
    return "/".join(["/v1/adapters", *(quote(segment, safe="@:") for segment in (name, *more))])
