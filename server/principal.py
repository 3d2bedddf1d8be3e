"""Who calls, and what that caller may do.

Owns the two words that every route speaks of callers with. Knows neither keys nor where they are stored.
"""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a key allows: `infer` generates, `read` looks, `write` changes adapters, `admin` runs the server."""

    INFER = "infer"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. `tenant` owns adapters, quotas and usage; "" is the one tenant of a server without keys.

    `project` divides a tenant's usage, `key` is the public half of the key that was shown.
    """

    tenant: str
    project: str
    key: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes


ANYONE = Principal(tenant="", project="", key="", scopes=frozenset(Scope))
"""Whoever calls a server without keys."""
