"""What each version's file says of the base it was trained on: the weights' fingerprint and their quantization."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("versions", sa.Column("base_weights", sa.String(), nullable=True))
    op.add_column("versions", sa.Column("base_quantization", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("versions", "base_quantization")
    op.drop_column("versions", "base_weights")
