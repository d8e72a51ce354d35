"""Whether a cycle's candidate waits for its turn."""

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0002_waiting"
down_revision = "scheduler_0001_learning_cycles"


def upgrade() -> None:
    op.add_column("cycles", sa.Column("waits", sa.Boolean, nullable=False, server_default=sa.false()))
