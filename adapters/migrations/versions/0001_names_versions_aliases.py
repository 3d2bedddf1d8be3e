"""Names with numbered versions and aliases, the adapters they point at, and who was resident."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("manifest", sa.String(), nullable=False),
    )
    op.create_table(
        "names",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("name", sa.String(), sa.ForeignKey("names.name"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("adapter_id", sa.String(), sa.ForeignKey("adapters.id"), nullable=False),
        sa.Column("base", sa.String(), nullable=True),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.UniqueConstraint("name", "adapter_id", name="uq_versions_name_adapter"),
        sa.CheckConstraint("number >= 1", name="ck_versions_number"),
    )
    op.create_index("ix_versions_adapter", "versions", ["adapter_id"])
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("alias", sa.String(), primary_key=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], ondelete="CASCADE"),
    )
    op.create_table(
        "residents",
        sa.Column("position", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("adapter_id", sa.String(), sa.ForeignKey("adapters.id", ondelete="CASCADE"), nullable=False),
    )


def downgrade() -> None:
    for table in ("residents", "aliases", "versions", "names", "adapters"):
        op.drop_table(table)
