"""Suspects, failure modes, granted questions, clusterings, and the offsets read so far."""

import sqlalchemy as sa
from alembic import op

revision = "failure_miner_initial"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "suspects",
        sa.Column("prediction_id", sa.Text, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("task_revision", sa.Text, nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("confidence", sa.Float),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("embedding", sa.LargeBinary, nullable=False),
        sa.Column("user_hash", sa.Text),
        sa.Column("label", sa.Text),
        sa.Column("label_partition", sa.Integer),
        sa.Column("label_offset", sa.BigInteger),
        sa.Column("label_at", sa.DateTime(timezone=True)),
        sa.Column("label_request", sa.Text),
        sa.Column("label_reviewer", sa.Text),
        sa.Column("cycle_id", sa.Text),
        sa.Column("mode_id", sa.Text),
    )
    op.create_index("suspects_of_task", "suspects", ["task", "task_revision", "occurred_at"])
    op.create_table(
        "modes",
        sa.Column("mode_id", sa.Text, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("task_revision", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("centroid", sa.LargeBinary, nullable=False),
        sa.Column("first_cycle", sa.Text, nullable=False),
        sa.Column("last_cycle", sa.Text, nullable=False),
    )
    op.create_index("modes_of_task", "modes", ["task", "task_revision"])
    op.create_table(
        "asked",
        sa.Column("prediction_id", sa.Text, primary_key=True),
        sa.Column("purpose", sa.Text, primary_key=True),
        sa.Column("probability", sa.Float, nullable=False),
        sa.Column("drawn_probability", sa.Float),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("task_revision", sa.Text, nullable=False),
        sa.Column("predicted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("user_hash", sa.Text),
    )
    op.create_index("asked_of_task", "asked", ["task", "task_revision", "predicted_at"])
    op.create_table(
        "sampling",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("stratum", sa.Text, primary_key=True),
        sa.Column("rate", sa.Float, nullable=False),
        sa.Column("seen", sa.BigInteger, nullable=False),
        sa.Column("asked", sa.BigInteger, nullable=False),
        sa.Column("refused", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "clusterings",
        sa.Column("cycle_id", sa.Text, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
    )
    op.create_table(
        "offsets",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "forgotten",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("subject_hash", sa.Text, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table("broker_incarnation", sa.Column("incarnation", sa.Text, primary_key=True))
