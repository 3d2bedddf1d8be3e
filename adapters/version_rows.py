"""Rows of versions made into `Version`s: with what points at them, their scores and their manifests.

Owns that joining, and the memory of parsed manifests. Knows a session and the tables; when one commits is the
registry's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from adapters import aliases, evaluations, queries
from adapters.aliases import Pointers
from adapters.canary import Canary, Split
from adapters.evaluations import Score
from adapters.lookup import look_up
from adapters.manifest import AdapterId, Manifest, TrainedOn
from adapters.manifest_json import manifest_from_json
from adapters.naming import Reference
from adapters.tables import AdapterRow, VersionRow
from adapters.version import Version


class VersionRows:
    """Safe to use from many threads."""

    def __init__(self) -> None:
        self._manifests: dict[AdapterId, Manifest] = {}

    def forget(self, ids: Iterable[AdapterId]) -> None:
        for id in ids:
            self._manifests.pop(id, None)

    def resolve(self, session: Session, reference: Reference) -> Version:
        """What the reference means. Raises UnknownAdapter, UnknownVersion."""
        rows = look_up(session, reference)
        if not rows:
            return self.describe(session, queries.find(session, reference))  # which says what is unknown
        row = rows[0]
        own_aliases = dict.fromkeys(each.alias for each in rows if each.alias is not None)
        canaries = dict.fromkeys((each.canary, each.weight) for each in rows if each.canary is not None)
        return self._described(session, row, Pointers(tuple(own_aliases), tuple(canaries)), _score(row))

    def describe(self, session: Session, row: VersionRow) -> Version:
        return self.describe_all(session, [row])[0]

    def describe_all(self, session: Session, rows: Sequence[VersionRow]) -> list[Version]:
        names = {row.name for row in rows}
        pointers, scores = aliases.pointers(session, names), evaluations.scores(session, names)
        keys = [(row.name, row.number) for row in rows]
        return [
            self._described(session, row, pointers.get(key, Pointers()), scores.get(key))
            for row, key in zip(rows, keys, strict=True)
        ]

    def _described(
        self, session: Session, row: VersionRow | Row[Any], pointers: Pointers, score: Score | None
    ) -> Version:
        manifest = self._manifest(session, AdapterId(row.adapter_id))
        return Version(
            name=row.name,
            full_name=row.name,
            number=row.number,
            id=AdapterId(row.adapter_id),
            created=row.created.replace(tzinfo=UTC),
            aliases=pointers.aliases,
            manifest=replace(manifest, base=row.base, trained_on=_trained_on(row)),
            canaries=pointers.canaries,
            score=score,
        )

    def split(self, session: Session, name: str, alias: str, stable: Version, canary: Canary) -> Split[Version]:
        tried = self.resolve(session, Reference(name, number=canary.number))
        return Split(stable, tried, canary.weight, salt=f"{name}@{alias}#{tried.id}")

    def _manifest(self, session: Session, id: AdapterId) -> Manifest:
        """Manifests never change, and parsing one costs far more than the query, so parsed ones are kept."""
        known = self._manifests.get(id)
        if known is None:
            known = manifest_from_json(session.get_one(AdapterRow, id).manifest)
            self._manifests[id] = known
        return known


def _score(row: Row[Any]) -> Score | None:
    if row.score_sha256 is None:
        return None
    return Score(
        row.score_sha256, row.score_base, row.score_mean_logprob, row.score_exact, row.score_rows, row.score_tokens
    )


def _trained_on(row: VersionRow | Row[Any]) -> TrainedOn | None:
    if row.base_weights is None or row.base_quantization is None:
        return None
    return TrainedOn(row.base_weights, row.base_quantization)
