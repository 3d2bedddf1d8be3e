"""The registry's tables, as they are after the newest migration in adapters/migrations.

Owns the relational shape and its constraints. Knows no SQL dialect and no queries.
"""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    pass


class AdapterRow(Table):
    """A blob that some version points at. `manifest` is its description as JSON."""

    __tablename__ = "adapters"

    id: Mapped[str] = mapped_column(primary_key=True)
    manifest: Mapped[str]


class NameRow(Table):
    """A name that was ever used. The row outlives deletion, so that `last_number` counts on.

    So `name@3` never comes to mean something else. `pinned` asks for the newest version to stay on the device.
    """

    __tablename__ = "names"

    name: Mapped[str] = mapped_column(primary_key=True)
    last_number: Mapped[int]
    pinned: Mapped[bool]


class VersionRow(Table):
    """One immutable version. `created` is UTC without a zone; `base` is what this upload's config called its base.

    `base_weights` and `base_quantization` are its record of the base it was trained on: both or none.
    """

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("name", "adapter_id", name="uq_versions_name_adapter"),
        Index("ix_versions_adapter", "adapter_id"),
        CheckConstraint("number >= 1", name="ck_versions_number"),
    )

    name: Mapped[str] = mapped_column(ForeignKey("names.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    base: Mapped[str | None]
    base_weights: Mapped[str | None]
    base_quantization: Mapped[str | None]
    created: Mapped[datetime]


class AliasRow(Table):
    __tablename__ = "aliases"
    __table_args__ = (
        ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]


class CanaryRow(Table):
    """The version that gets the fraction `weight` of an alias's traffic."""

    __tablename__ = "canaries"
    __table_args__ = (
        ForeignKeyConstraint(["name", "alias"], ["aliases.name", "aliases.alias"], ondelete="CASCADE"),
        ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
        CheckConstraint("weight > 0 AND weight < 1", name="ck_canaries_weight"),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]
    weight: Mapped[float]


class AliasMoveRow(Table):
    """One move of an alias; no number where there was no alias before, or is none after.

    `undone` is when a rollback took it back. Both times are UTC without a zone.
    """

    __tablename__ = "alias_moves"
    __table_args__ = (
        ForeignKeyConstraint(["name", "from_number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
        ForeignKeyConstraint(["name", "to_number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
        Index("ix_alias_moves_alias", "name", "alias"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    alias: Mapped[str]
    moved: Mapped[datetime]
    from_number: Mapped[int | None]
    to_number: Mapped[int | None]
    undone: Mapped[datetime | None]


class EvalFileRow(Table):
    """The eval file that a version carries, and its digest."""

    __tablename__ = "eval_files"
    __table_args__ = (
        ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    content: Mapped[bytes]


class ScoreRow(Table):
    """How a version did when it was measured last, on the eval file with this digest and on this base."""

    __tablename__ = "scores"
    __table_args__ = (
        ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    base: Mapped[str]
    mean_logprob: Mapped[float]
    exact: Mapped[float]
    rows: Mapped[int]
    tokens: Mapped[int]


class ResidentRow(Table):
    """The adapters that were in memory, `position` 0 the most recently used, to warm the next start."""

    __tablename__ = "residents"

    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id", ondelete="CASCADE"))


class ShareRow(Table):
    """`name` is shared with `tenant`, or with everybody where that is `*`. The table has kept its first name."""

    __tablename__ = "grants"

    name: Mapped[str] = mapped_column(ForeignKey("names.name"), primary_key=True)
    tenant: Mapped[str] = mapped_column(primary_key=True)
