"""The eval file that a version may carry, and how a version did on one."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    version = ["name", "number"], ["versions.name", "versions.number"]
    op.create_table(
        "eval_files",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(*version, ondelete="CASCADE"),
    )
    op.create_table(
        "scores",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("mean_logprob", sa.Double(), nullable=False),
        sa.Column("exact", sa.Double(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(*version, ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("scores")
    op.drop_table("eval_files")
