"""Who is forgotten: what they asked is not asked again. And how far that was read, for a database that is restored."""

import sqlalchemy as sa
from alembic import op

revision = "shadow_0002_forgotten"
down_revision = "shadow_0001_backlogs"


def upgrade() -> None:
    op.create_table(
        "forgotten",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("subject_hash", sa.Text, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "offsets",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )
    op.create_table("broker_incarnation", sa.Column("incarnation", sa.Text, primary_key=True))
