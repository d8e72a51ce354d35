"""Cycles, scheduled runs, and how far the scheduler's own announcements were read."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "scheduler_initial"
down_revision = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "cycles",
        sa.Column("cycle_id", sa.Text, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("started", JSONB, nullable=False),
        sa.Column("announced", sa.Boolean, nullable=False),
        sa.Column("timeout_minutes", sa.Integer, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("step_since", TIME, nullable=False),
        sa.Column("progress_at", TIME),
        sa.Column("late_step", sa.Text),
        sa.Column("waits", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("finished", JSONB),
        sa.Column("finished_by", sa.Uuid),
        sa.Column("end_announced", sa.Boolean, nullable=False),
    )
    op.create_index(
        "one_learning_cycle_per_task", "cycles", ["task"], unique=True,
        postgresql_where=sa.text("finished IS NULL AND step <> 'rollout'"),
    )  # fmt: skip
    op.create_table(
        "scheduled_runs",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("cron", sa.Text, nullable=False),
        sa.Column("considered_at", TIME, nullable=False),
    )
    op.create_table(
        "offsets",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )
