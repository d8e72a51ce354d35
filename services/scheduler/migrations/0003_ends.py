"""Whether `cycles.finished` is on Kafka."""

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0003_ends"
down_revision = "scheduler_0002_waiting"


def upgrade() -> None:
    op.add_column("cycles", sa.Column("end_announced", sa.Boolean, nullable=False, server_default=sa.true()))
