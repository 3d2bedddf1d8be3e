"""What a request that is under way has been given so far, noted now and then: a kill -9 leaves no more than this."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("under_way", sa.Column("generated_tokens", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("under_way", "generated_tokens")
