"""What of the dossiers goes into a registry that is being made again from labels.

Owns what may be believed: a dossier speaks of a name, and only what it says of versions that are there, by number and
by id, is taken. It never shares what it does not say is shared. Knows no files but theirs.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.dossier import Dossier, DossierUnreadable, decode, row
from adapters.dossier_files import path_of
from adapters.tables import AliasMoveRow, AliasRow, CanaryRow, EvalFileRow, NameRow, ScoreRow, ShareRow, VersionRow

_MEASURED = {EvalFileRow: "eval files", ScoreRow: "scores"}


@dataclass(slots=True)
class Restored:
    """In words: `again` is what came back, `lost` what did not, and why."""

    again: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def restore(session: Session, folder: Path) -> Restored:
    """Add what the dossiers in `folder` say to the names, versions and aliases that the session has already."""
    restored, names = Restored(), set(session.scalars(select(NameRow.name)))
    for path in sorted(folder.glob("*.json")):
        try:
            dossier = decode(path.read_bytes())
            if path != path_of(folder, dossier.name):
                raise DossierUnreadable("it is another name's")
            _Restoring(session, dossier, restored).run()
            names.discard(dossier.name)
        except (DossierUnreadable, OSError) as error:
            unread = next((name for name in names if path_of(folder, name) == path), None)
            names.discard(unread or "")
            of = "A name that has no versions any more" if unread is None else unread
            restored.lost.append(f"{of}: what else was known of it, as its dossier cannot be read ({error})")
    restored.lost += [f"{name}: what else was known of it, as it has no dossier" for name in sorted(names)]
    return restored


class _Restoring:
    """One name's dossier."""

    def __init__(self, session: Session, dossier: Dossier, restored: Restored) -> None:
        self._session, self._dossier, self._restored = session, dossier, restored
        mine = select(VersionRow).where(VersionRow.name == dossier.name)
        ids = {version.number: version.adapter_id for version in session.scalars(mine)}
        self._there = bool(ids)
        self._agreed = {number for number, id in ids.items() if dossier.versions.get(str(number)) == id}

    def run(self) -> None:
        """All of it or, when that raises DossierUnreadable, nothing."""
        again, lost = len(self._restored.again), len(self._restored.lost)
        try:
            with self._session.begin_nested():
                self._name()
                for kept in (self._shares(), self._canaries(), self._moves(), self._measured()):
                    self._session.add_all(kept)
                    self._session.flush()
        except (KeyError, ValueError, TypeError, zlib.error) as error:
            del self._restored.again[again:], self._restored.lost[lost:]
            raise DossierUnreadable("it is not what this release writes") from error

    def _name(self) -> None:
        """Numbers count on from where they were, for deleted versions and names too."""
        (spelled,) = self._rows(NameRow)
        owner = self._session.get(NameRow, self._dossier.name)
        if owner is None:
            owner = NameRow(name=self._dossier.name, last_number=0, pinned=False)
            self._session.add(owner)
        owner.last_number = max(owner.last_number, int(spelled["last_number"]))
        owner.pinned = bool(spelled["pinned"]) and self._there
        if owner.pinned:
            self._again("pinned")
        if self._dossier.versions and not self._there:
            self._lost("its versions, whose bytes or labels are gone")
        elif self._there and not self._agreed:
            self._lost("what else was known of it, as its dossier speaks of other versions")
        self._session.flush()

    def _shares(self) -> list[Any]:
        rows = self._rows(ShareRow) if self._agreed else []
        for spelled in rows:
            self._again(f"shared with {'everybody' if spelled['tenant'] == '*' else spelled['tenant']}")
        return [row(ShareRow, spelled) for spelled in rows]

    def _canaries(self) -> list[Any]:
        """An alias that points elsewhere than the dossier knows has moved since: its canary then ended."""
        found = []
        for spelled in self._rows(CanaryRow):
            alias, number = spelled["alias"], spelled["number"]
            pointed = self._session.get(AliasRow, (self._dossier.name, alias))
            if pointed is None or pointed.number != self._dossier.aliases.get(alias) or number not in self._agreed:
                self._lost(f"the canary of its alias {alias}, which has moved since")
                continue
            self._again(f"{alias} gives version {number} {spelled['weight']:.0%} of its traffic")
            found.append(row(CanaryRow, spelled))
        return found

    def _moves(self) -> list[Any]:
        """The history of aliases, but for versions that are gone, as when they are deleted."""
        there = self._agreed | {None}
        rows = [each for each in self._rows(AliasMoveRow) if {each["from_number"], each["to_number"]} <= there]
        if rows:
            self._again(f"{len(rows)} moves of its aliases")
        return [row(AliasMoveRow, spelled) for spelled in rows]

    def _measured(self) -> list[Any]:
        found = []
        for table, called in _MEASURED.items():
            rows = [spelled for spelled in self._rows(table) if spelled["number"] in self._agreed]
            if rows:
                self._again(f"{len(rows)} {called}")
            found += [row(table, spelled) for spelled in rows]
        return found

    def _rows(self, table: Any) -> list[Mapping[str, Any]]:
        return [spelled for spelled in self._dossier.kept[table.__tablename__] if spelled["name"] == self._dossier.name]

    def _again(self, what: str) -> None:
        self._restored.again.append(f"{self._dossier.name}: {what}")

    def _lost(self, what: str) -> None:
        self._restored.lost.append(f"{self._dossier.name}: {what}")
