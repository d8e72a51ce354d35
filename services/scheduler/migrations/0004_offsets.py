"""How far the scheduler's own announcements were read."""

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0004_offsets"
down_revision = "scheduler_0003_ends"


def upgrade() -> None:
    op.create_table(
        "offsets",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )
