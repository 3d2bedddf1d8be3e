"""To which tenants an adapter's owner lends it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "grants",
        sa.Column("name", sa.String(), sa.ForeignKey("names.name"), primary_key=True),
        sa.Column("tenant", sa.String(), primary_key=True),
    )


def downgrade() -> None:
    op.drop_table("grants")
