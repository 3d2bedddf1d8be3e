"""The one table of the ledger, as it is after the newest migration in server/usage/migrations.

Owns its shape. Knows no queries.
"""

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    pass


class UsageRow(Table):
    """One request. `place` counts rows in the order they were written; no row is changed or deleted."""

    __tablename__ = "usage"

    place: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    tenant: Mapped[str]
    project: Mapped[str]
    key: Mapped[str]
    adapter: Mapped[str]
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    generated_tokens: Mapped[int]
    finish_reason: Mapped[str]
    started: Mapped[float]
    ended: Mapped[float]
