"""Corrections, erased people, production's answers by hour, builds and their decisions, and the offsets read so far."""

import sqlalchemy as sa
from alembic import op

revision = "dataset_builder_0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "corrections",
        sa.Column("correction_id", sa.Text, primary_key=True),
        sa.Column("prediction_id", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("user_hash", sa.Text),
        sa.Column("author_hash", sa.Text),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("happened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("given_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("clear_by", sa.Text),
    )
    op.create_index("corrections_of_task", "corrections", ["task"])
    op.create_index("corrections_of_prediction", "corrections", ["prediction_id"])
    op.create_table(
        "revisions",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("revision", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("system_prompt", sa.Text, nullable=False),
        sa.Column("answer_form", sa.Text, nullable=False),
    )
    op.create_table(
        "forgotten",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("subject_hash", sa.Text, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "traffic",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("task_revision", sa.Text, primary_key=True),
        sa.Column("variant", sa.Text, primary_key=True),
        sa.Column("adapter", sa.Text, primary_key=True),
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("answers", sa.JSON, nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "places",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("prediction_id", sa.Text, primary_key=True),
        sa.Column("fate", sa.Text, nullable=False),
        sa.Column("group", sa.Text, nullable=False),
        sa.Column("user_hash", sa.Text),
        sa.Column("happened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary),
        sa.Column("cycle_id", sa.Text),
    )
    op.create_table(
        "builds",
        sa.Column("cycle_id", sa.Text, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cycle_failed", sa.Boolean),
    )
    op.create_table(
        "offsets",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )
    op.create_table("broker_incarnation", sa.Column("incarnation", sa.Text, primary_key=True))
