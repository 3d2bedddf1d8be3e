"""One numbered version of a name, as the registry describes it.

Owns that frozen data, which catalog and server share. Knows no rows.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from adapters.evaluations import Score
from adapters.manifest import AdapterId, Manifest


@dataclass(frozen=True, slots=True)
class Version:
    """One numbered version of a name. `created` is in UTC, `aliases` are sorted.

    `full_name` is what the registry calls it, `name` what the tenant who asked does; by itself that is the same.
    `canaries` are the aliases that give it a fraction of their traffic, each with that; `score` is its latest.
    """

    name: str
    full_name: str
    number: int
    id: AdapterId
    created: datetime
    aliases: tuple[str, ...]
    manifest: Manifest
    canaries: tuple[tuple[str, float], ...] = ()
    score: Score | None = None

    def renamed(self, name: str) -> "Version":
        return replace(self, name=name)
