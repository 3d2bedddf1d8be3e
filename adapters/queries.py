"""What the registry asks about versions: the row that a reference means, and questions over many rows.

Owns those queries. Knows a session and the tables; what the answers mean is the registry's.
"""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session

from adapters.errors import UnknownAdapter, UnknownVersion, quoted
from adapters.naming import Reference, qualified
from adapters.sharing import EVERYBODY
from adapters.tables import AliasRow, ShareRow, VersionRow


def find(session: Session, reference: Reference) -> VersionRow:
    """Without a selector, the newest version. Raises UnknownAdapter, UnknownVersion."""
    query = select(VersionRow).where(VersionRow.name == reference.name)
    if reference.number is not None:
        query = query.where(VersionRow.number == reference.number)
    elif reference.id is not None:
        query = query.where(VersionRow.adapter_id == reference.id)
    elif reference.alias is not None:
        number = select(AliasRow.number).where(AliasRow.name == reference.name, AliasRow.alias == reference.alias)
        query = query.where(VersionRow.number == number.scalar_subquery())
    row = session.scalars(query.order_by(VersionRow.number.desc()).limit(1)).one_or_none()
    if row is not None:
        return row
    if session.scalar(select(exists().where(VersionRow.name == reference.name))):
        selector = reference.number or reference.alias or reference.id
        raise UnknownVersion(f"The adapter {quoted(reference.name)} has no version, alias or digest {selector}.")
    raise unknown(reference.name)


def only_version(session: Session, name: str) -> bool:
    return session.scalar(select(func.count()).select_from(VersionRow).where(VersionRow.name == name)) == 1


def newest_number(session: Session, name: str) -> int | None:
    return session.scalar(select(func.max(VersionRow.number)).where(VersionRow.name == name))


def newest_of_each(session: Session, tenant: str | None = None) -> Sequence[VersionRow]:
    names = select(VersionRow.name, func.max(VersionRow.number).label("number")).group_by(VersionRow.name)
    if tenant is not None:
        shared = select(ShareRow.name).where(ShareRow.tenant.in_((tenant, EVERYBODY)))
        names = names.where(_owned(tenant) | VersionRow.name.in_(shared))
    newest = names.subquery()
    query = select(VersionRow).join(newest, (VersionRow.name == newest.c.name) & (VersionRow.number == newest.c.number))
    return session.scalars(query.order_by(VersionRow.name)).all()


def _owned(tenant: str) -> ColumnElement[bool]:
    """As naming.owner_of has it; a range of names, which an index serves. To `LIKE`, `_` would be any letter."""
    if not tenant:
        return ~VersionRow.name.contains("/")
    first = qualified(tenant, "")
    return (VersionRow.name >= first) & (VersionRow.name < first[:-1] + chr(ord("/") + 1))


def is_used(session: Session, id: str) -> bool:
    return bool(session.scalar(select(exists().where(VersionRow.adapter_id == id))))


def unknown(name: str) -> UnknownAdapter:
    return UnknownAdapter(f"There is no adapter {quoted(name)}.")
