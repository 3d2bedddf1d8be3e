"""The ledger's two tables, as they are after the newest migration in server/usage/migrations.

Owns their shape. Knows no queries.
"""

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    pass


class UsageRow(Table):
    """One request that has ended. `place` counts rows in the order they were written; none is changed or deleted."""

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


class UnderWayRow(Table):
    """One request that has not ended, as far as the disk knows. It goes in the transaction that writes its end."""

    __tablename__ = "under_way"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    project: Mapped[str]
    key: Mapped[str]
    adapter: Mapped[str]
    prompt_tokens: Mapped[int]
    started: Mapped[float]
    generated_tokens: Mapped[int]
