"""Names, their numbered versions and their aliases, in a database.

Owns what a name means and has meant: a version is immutable, its number is never given to other content, not even
after the name was deleted. Where aliases point is in aliases.py. Knows ids and manifests, but no files and no memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from adapters import aliases, dossier, evaluations, queries
from adapters.aliases import Alias, Pointers
from adapters.canary import Canary, Split
from adapters.condition import Condition, check
from adapters.database import Database
from adapters.disk import Disk
from adapters.dossier import Dossier
from adapters.errors import VersionInUse, quoted
from adapters.evaluations import EvalFile, Score
from adapters.manifest import AdapterId, Manifest
from adapters.manifest_json import manifest_to_json
from adapters.naming import Reference
from adapters.sharing import Shares
from adapters.tables import AdapterRow, CanaryRow, NameRow, ResidentRow, ShareRow, VersionRow
from adapters.version import Version
from adapters.version_rows import VersionRows


class Registry:
    """Safe to use from many threads. `url` is SQLAlchemy's: `sqlite:////data/registry.db`."""

    def __init__(self, url: str, disk: Disk | None = None) -> None:
        """Opens the database and brings its schema up to date. Raises DatabaseUnusable when that cannot be done."""
        self._database = Database(url, disk=disk)
        self._rows = VersionRows()
        self.shares = Shares(self._database)

    def close(self) -> None:
        self._database.close()

    def add(
        self,
        name: str,
        manifest: Manifest,
        alias: str | None = None,
        condition: Condition | None = None,
        eval: bytes | None = None,
    ) -> tuple[Version, bool]:
        """The version of `name` with this content, and whether it is new. Either way, in one transaction, the alias
        moves to it and it is given the eval file, which `promote` measures on.

        Content that the name has had before keeps its number, even if it is not the newest; a record of its base
        that comes with it now takes the place of the one it came with before. The condition is on the newest version.
        Raises ConditionFailed.
        """
        with self._database.writing() as session:
            check(condition, queries.newest_number(session, name))
            query = select(VersionRow).where(VersionRow.name == name, VersionRow.adapter_id == manifest.id)
            row = session.scalars(query).one_or_none()
            created = row is None
            if row is None:
                row = self._new_version(session, name, manifest)
            if manifest.trained_on is not None:
                row.base_weights, row.base_quantization = manifest.trained_on.weights, manifest.trained_on.quantization
                session.flush()
            if eval is not None:
                evaluations.attach(session, name, row.number, eval)
            if alias is not None:
                aliases.point(session, name, alias, row.number)
            return self._rows.describe(session, row), created

    def resolve(self, reference: Reference) -> Version:
        """Without a selector, the newest version. Raises UnknownAdapter, UnknownVersion."""
        with self._database.reading() as session:
            return self._rows.resolve(session, reference)

    def split(self, reference: Reference) -> Split[Version]:
        """As `resolve`, with the alias's canary."""
        with self._database.reading() as session:
            stable, name, alias = self._rows.resolve(session, reference), reference.name, reference.alias
            canary = None if alias is None else aliases.canary_of(session, name, alias)
            if canary is None:
                return Split(stable)
            assert alias is not None
            return self._rows.split(session, name, alias, stable, canary)

    def splits(self) -> list[Split[Version]]:
        """Every alias that has a canary, sorted by name and alias."""
        with self._database.reading() as session:
            rows = session.scalars(select(CanaryRow).order_by(CanaryRow.name, CanaryRow.alias)).all()
            return [
                self._rows.split(
                    session,
                    row.name,
                    row.alias,
                    self._rows.resolve(session, Reference(row.name, alias=row.alias)),
                    Canary(row.number, row.weight),
                )
                for row in rows
            ]

    def newest(self, tenant: str | None = None) -> list[Version]:
        """The newest version of each name, sorted by name; of all, or of those that `tenant` may use."""
        with self._database.reading() as session:
            return self._rows.describe_all(session, queries.newest_of_each(session, tenant))

    def every(self) -> list[Version]:
        """Every version of every name, sorted by name and number."""
        with self._database.reading() as session:
            query = select(VersionRow).order_by(VersionRow.name, VersionRow.number)
            return self._rows.describe_all(session, session.scalars(query).all())

    def versions(self, name: str) -> list[Version]:
        """Oldest first. Raises UnknownAdapter."""
        with self._database.reading() as session:
            query = select(VersionRow).where(VersionRow.name == name).order_by(VersionRow.number)
            rows = session.scalars(query).all()
            if not rows:
                raise queries.unknown(name)
            return self._rows.describe_all(session, rows)

    def set_alias(
        self, name: str, alias: str, number: int, condition: Condition | None = None, canary: Canary | None = None
    ) -> Version:
        """Point `alias` at a version. `canary` takes the place of any other.

        The condition is on the version that it pointed at before. Raises UnknownAdapter, UnknownVersion, CanaryInvalid,
        ConditionFailed.
        """
        with self._database.writing() as session:
            row = queries.find(session, Reference(name, number=number))
            if canary is not None:
                queries.find(session, Reference(name, number=canary.number))
            check(condition, aliases.target(session, name, alias))
            aliases.point(session, name, alias, number, canary)
            return self._rows.describe(session, row)

    def roll_back(self, name: str, alias: str, condition: Condition | None = None) -> Version:
        """End the alias's canary, else put it back to where it pointed before.

        Raises UnknownAdapter, NothingToRollBack, ConditionFailed.
        """
        with self._database.writing() as session:
            queries.find(session, Reference(name))
            check(condition, aliases.target(session, name, alias))
            number = aliases.roll_back(session, name, alias)
            return self._rows.describe(session, queries.find(session, Reference(name, number=number)))

    def alias(self, name: str, alias: str) -> Alias:
        """Raises UnknownAdapter when `name` has no such alias."""
        with self._database.reading() as session:
            return aliases.read(session, name, alias)

    def delete_alias(self, name: str, alias: str, condition: Condition | None = None) -> None:
        """Raises UnknownAdapter when `name` has no such alias, ConditionFailed."""
        with self._database.writing() as session:
            held = aliases.target(session, name, alias)
            if held is None:
                raise aliases.unknown_alias(name, alias)
            check(condition, held)
            aliases.point(session, name, alias, None)

    def attach_eval(self, name: str, number: int, content: bytes) -> None:
        """Give a version its eval file, in place of one that it had. Raises UnknownAdapter, UnknownVersion."""
        with self._database.writing() as session:
            queries.find(session, Reference(name, number=number))
            evaluations.attach(session, name, number, content)

    def eval_file(self, name: str, number: int) -> EvalFile | None:
        with self._database.reading() as session:
            return evaluations.carried(session, name, number)

    def remember_score(self, name: str, number: int, score: Score) -> None:
        """Raises UnknownAdapter, UnknownVersion."""
        with self._database.writing() as session:
            queries.find(session, Reference(name, number=number))
            evaluations.remember(session, name, number, score)

    def delete(self, name: str, condition: Condition | None = None) -> list[AdapterId]:
        """Remove every version and alias of `name`; the ids that no name points at any more.

        The name's counter stays: a later upload continues the numbers instead of reusing them. The condition is on the
        newest version. Raises UnknownAdapter, ConditionFailed.
        """
        with self._database.writing() as session:
            ids = session.scalars(select(VersionRow.adapter_id).where(VersionRow.name == name)).all()
            if not ids:
                raise queries.unknown(name)
            check(condition, queries.newest_number(session, name))
            session.execute(delete(VersionRow).where(VersionRow.name == name))
            session.execute(delete(ShareRow).where(ShareRow.name == name))
            session.get_one(NameRow, name).pinned = False
            return self._unused(session, ids)

    def delete_version(self, name: str, number: int, condition: Condition | None = None) -> list[AdapterId]:
        """Remove one version that nothing points at; as `delete`. Raises UnknownVersion and VersionInUse too."""
        with self._database.writing() as session:
            row = queries.find(session, Reference(name, number=number))
            check(condition, queries.newest_number(session, name))
            pointers = aliases.pointers(session, {name}).get((name, number), Pointers())
            if pointing := sorted({*pointers.aliases, *(alias for alias, _ in pointers.canaries)}):
                raise VersionInUse(
                    f"Version {number} is what the alias {', '.join(map(quoted, pointing))} points at, or its canary. "
                    "Move the alias first."
                )
            if queries.only_version(session, name):
                raise VersionInUse(f"Version {number} is the only one. Delete the adapter {quoted(name)} instead.")
            aliases.forget(session, name, number)
            id = row.adapter_id
            session.delete(row)
            session.flush()
            return self._unused(session, [id])

    def _unused(self, session: Session, ids: Sequence[str]) -> list[AdapterId]:
        """Forget those of `ids` that no version has any more."""
        unused = [AdapterId(id) for id in ids if not queries.is_used(session, id)]
        session.execute(delete(AdapterRow).where(AdapterRow.id.in_(unused)))
        self._rows.forget(unused)
        return unused

    def with_content(self, id: AdapterId) -> list[Version]:
        """Every version with this content, sorted by name."""
        with self._database.reading() as session:
            rows = session.scalars(select(VersionRow).where(VersionRow.adapter_id == id).order_by(VersionRow.name))
            return self._rows.describe_all(session, rows.all())

    def dossiers(self, name: str | None = None) -> dict[str, Dossier]:
        """What is known of each name that was ever used, or of one of them."""
        with self._database.reading() as session:
            return dossier.read(session, name)

    def is_new(self) -> bool:
        """Whether it has never held a name."""
        with self._database.reading() as session:
            return not session.scalar(select(exists().where(NameRow.name.is_not(None))))

    def is_used(self, id: AdapterId) -> bool:
        with self._database.reading() as session:
            return queries.is_used(session, id)

    def ids(self) -> frozenset[AdapterId]:
        """Every id that some name points at."""
        with self._database.reading() as session:
            return frozenset(AdapterId(id) for id in session.scalars(select(AdapterRow.id)))

    def set_pinned(self, name: str, pinned: bool) -> Version:
        """The newest version of `name`, which the pin applies to. Raises UnknownAdapter."""
        with self._database.writing() as session:
            row = queries.find(session, Reference(name))
            session.get_one(NameRow, name).pinned = pinned
            return self._rows.describe(session, row)

    def pinned(self) -> list[Version]:
        """The newest version of each pinned name, sorted by name."""
        with self._database.reading() as session:
            pinned = set(session.scalars(select(NameRow.name).where(NameRow.pinned)))
            return self._rows.describe_all(
                session, [row for row in queries.newest_of_each(session) if row.name in pinned]
            )

    def remember_residents(self, ids: Iterable[AdapterId]) -> None:
        """Replace the remembered order, most recent first. Ids that were deleted meanwhile are left out."""
        with self._database.writing() as session:
            session.execute(delete(ResidentRow))
            known = set(session.scalars(select(AdapterRow.id)))
            kept = [id for id in dict.fromkeys(ids) if id in known]
            session.add_all(ResidentRow(position=at, adapter_id=id) for at, id in enumerate(kept))

    def residents(self) -> list[AdapterId]:
        """Most recent first."""
        with self._database.reading() as session:
            query = select(ResidentRow.adapter_id).order_by(ResidentRow.position)
            return [AdapterId(id) for id in session.scalars(query)]

    def _new_version(self, session: Session, name: str, manifest: Manifest) -> VersionRow:
        owner = session.get(NameRow, name, with_for_update=True)
        if owner is None:
            owner = NameRow(name=name, last_number=0, pinned=False)
            session.add(owner)
        owner.last_number += 1
        if session.get(AdapterRow, manifest.id) is None:
            # What an upload calls its base is the version's, not the content's.
            session.add(AdapterRow(id=manifest.id, manifest=manifest_to_json(replace(manifest, base=None))))
        session.flush()
        now = datetime.now(UTC).replace(tzinfo=None)
        row = VersionRow(name=name, number=owner.last_number, adapter_id=manifest.id, base=manifest.base, created=now)
        session.add(row)
        session.flush()
        return row
