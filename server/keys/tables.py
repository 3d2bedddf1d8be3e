"""The one table of keys, as it is after the newest migration in server/keys/migrations.

Owns its shape. Knows no queries. No secret is in it: `digest` is HMAC-SHA256 of the key under the pepper.
"""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    pass


class KeyRow(Table):
    """A key that was ever made; rows are never deleted. Times are UTC without a zone, `scopes` are sorted words.

    `replaces` is the key that this one took over from.
    """

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[bytes]
    tenant: Mapped[str]
    project: Mapped[str]
    scopes: Mapped[str]
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]
    replaces: Mapped[str | None] = mapped_column(ForeignKey("keys.id"))
