"""What stands beside each blob so that a lost registry can be made again: the names and versions that point at it.

Owns the label's encoding and when labels are written: after the registry has committed, and again at a start for those
that a crash kept behind. A label follows the registry and is never asked while that one lives.
"""

import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from adapters.errors import UnknownAdapter
from adapters.manifest import AdapterId, TrainedOn
from adapters.registry import Registry
from adapters.store import BlobStore
from adapters.version import Version

log = logging.getLogger(__name__)

LabelFacts = frozenset[tuple[AdapterId, int, tuple[str, ...], TrainedOn | None]]


@dataclass(frozen=True, slots=True)
class Label:
    """One version as a label has it. `written` is when, to settle which of two labels with one alias is newer."""

    name: str
    number: int
    created: datetime
    aliases: tuple[str, ...]
    base: str | None
    trained_on: TrainedOn | None
    written: datetime


class BlobLabels:
    """Keeps labels equal to the registry. Safe to use from many threads."""

    def __init__(self, registry: Registry, store: BlobStore) -> None:
        self._registry, self._store = registry, store
        self._writing = threading.Lock()  # what is read of the registry last is also what is written last

    def facts_of(self, name: str) -> LabelFacts:
        """What labels say of a name, to compare with what they said before."""
        try:
            versions = self._registry.versions(name)
        except UnknownAdapter:
            return frozenset()
        return frozenset((each.id, each.number, each.aliases, each.manifest.trained_on) for each in versions)

    def follow(self, name: str, before: LabelFacts) -> None:
        """Write anew the labels that say other things of `name` than `before`.

        What was committed stands even if its label cannot be written: that is logged.
        """
        try:
            self._write(id for id, *_ in before ^ self.facts_of(name))
        except OSError:
            log.exception("the labels of %s were not written; the next start tries again", name)

    def refresh(self) -> None:
        """At a start: write those that do not say what the registry says. What cannot be written is logged."""
        said: dict[AdapterId, list[Version]] = {}
        for version in self._registry.every():
            said.setdefault(version.id, []).append(version)
        self._write(id for id, versions in said.items() if _facts(self._store.label(id)) != _spelled(versions))

    def _write(self, ids: Iterable[AdapterId]) -> None:
        for id in sorted(set(ids)):
            with self._writing:
                try:
                    if versions := self._registry.with_content(id):
                        self._store.set_label(id, encode(versions))
                except OSError:
                    log.exception("the label of %s was not written; the next start tries again", id)


def encode(versions: Iterable[Version]) -> bytes:
    label = {"written": datetime.now(UTC).isoformat(), "versions": _spelled(versions)}
    return json.dumps(label, indent=1).encode()


def decode(content: bytes) -> list[Label]:
    """Raises ValueError when it is not what `encode` wrote."""
    try:
        label = json.loads(content)
        written = datetime.fromisoformat(label["written"])
        return [_label(fields, written) for fields in label["versions"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the label is damaged") from error


def _label(fields: dict[str, Any], written: datetime) -> Label:
    record = fields["trained_on"]
    return Label(
        name=str(fields["name"]),
        number=int(fields["number"]),
        created=datetime.fromisoformat(fields["created"]),
        aliases=tuple(fields["aliases"]),
        base=fields["base"],
        trained_on=None if record is None else TrainedOn(record["weights"], record["quantization"]),
        written=written,
    )


def _spelled(versions: Iterable[Version]) -> list[dict[str, Any]]:
    return [
        {
            "name": version.name,
            "number": version.number,
            "created": version.created.isoformat(),
            "aliases": list(version.aliases),
            "base": version.manifest.base,
            "trained_on": None if (record := version.manifest.trained_on) is None else _record(record),
        }
        for version in sorted(versions, key=lambda version: (version.name, version.number))
    ]


def _record(record: TrainedOn) -> dict[str, str]:
    return {"weights": record.weights, "quantization": record.quantization}


def _facts(content: bytes | None) -> object:
    try:
        return None if content is None else json.loads(content).get("versions")
    except (ValueError, AttributeError):
        return None
