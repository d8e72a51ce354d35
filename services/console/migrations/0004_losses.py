"""The losses that a cycle's training has reported."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "console_0004_losses"
down_revision = "console_0003_offsets"


def upgrade() -> None:
    op.add_column("progress", sa.Column("losses", JSONB, nullable=False, server_default="[]"))
