"""How long production took for what is replayed, by hour: no more is taken than can be replayed in that time."""

import sqlalchemy as sa
from alembic import op

revision = "shadow_0003_busy_hours"
down_revision = "shadow_0002_forgotten"


def upgrade() -> None:
    op.create_table(
        "hours",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("busy_ms", sa.Double, nullable=False),
    )
