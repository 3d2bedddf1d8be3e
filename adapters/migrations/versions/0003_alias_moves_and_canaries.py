"""Where aliases pointed before, so that they can be put back, and the canaries that share an alias's traffic."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    version = ["versions.name", "versions.number"]
    op.create_table(
        "canaries",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("alias", sa.String(), primary_key=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["name", "alias"], ["aliases.name", "aliases.alias"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["name", "number"], version, ondelete="CASCADE"),
        sa.CheckConstraint("weight > 0 AND weight < 1", name="ck_canaries_weight"),
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("moved", sa.DateTime(), nullable=False),
        sa.Column("from_number", sa.Integer(), nullable=True),
        sa.Column("to_number", sa.Integer(), nullable=True),
        sa.Column("undone", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["name", "from_number"], version, ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["name", "to_number"], version, ondelete="CASCADE"),
    )
    op.create_index("ix_alias_moves_alias", "alias_moves", ["name", "alias"])


def downgrade() -> None:
    op.drop_table("alias_moves")
    op.drop_table("canaries")
