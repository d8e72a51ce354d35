"""Questions, answers, skips, the events of cycles, who is forgotten, and how far that was read."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "console_initial"
down_revision = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("arrived", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("task_revision", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("priority", sa.Float, nullable=False),
        sa.Column("needed", sa.Integer, nullable=False),
        sa.Column("asks_label", sa.Boolean, nullable=False),
        sa.Column("user_hash", sa.Text),
        sa.Column("suggested_by", sa.Text),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("prediction_id", sa.Text, nullable=False),
        sa.Column("case_id", sa.Text, nullable=False),
        sa.Column("cycle_id", sa.Text),
        sa.Column("happened_at", TIME, nullable=False),
        sa.Column("asked_at", TIME, nullable=False),
    )
    still_open = sa.text("needed > 0")
    op.create_index("open_by_priority", "requests", ["task", "priority"], postgresql_where=still_open)
    op.create_index("open_by_arrival", "requests", ["task", "arrived"], postgresql_where=still_open)
    op.create_index("requests_by_person", "requests", ["task", "user_hash"])
    op.create_index(
        "requests_by_suggester", "requests", ["task", "suggested_by"],
        postgresql_where=sa.text("suggested_by IS NOT NULL"),
    )  # fmt: skip
    op.create_index("requests_by_prediction", "requests", ["prediction_id"])
    op.create_index("requests_by_case", "requests", ["case_id"])
    op.create_index(
        "open_tickets_by_cycle", "requests", ["cycle_id"],
        postgresql_where=sa.text("needed > 0 AND purpose = 'discordant_pair'"),
    )  # fmt: skip
    op.create_table(
        "answers",
        sa.Column("request_id", sa.Text, sa.ForeignKey("requests.request_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("reviewer", sa.Text, primary_key=True),
        sa.Column("label", sa.Text),
        sa.Column("preference", sa.Text),
        sa.Column("seconds", sa.Float),
        sa.Column("surrogates", JSONB, nullable=False),
        sa.Column("edits", sa.Integer, nullable=False),
        sa.Column("answered_at", TIME, nullable=False),
    )
    op.create_index("answers_by_time", "answers", ["answered_at"])
    op.create_index("answers_by_reviewer", "answers", ["reviewer", "answered_at"])
    op.create_table(
        "skips",
        sa.Column("request_id", sa.Text, sa.ForeignKey("requests.request_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("reviewer", sa.Text, primary_key=True),
        sa.Column("skipped_at", TIME, nullable=False),
    )
    op.create_index("skips_by_time", "skips", ["skipped_at"])
    op.create_table(
        "cycle_events",
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("cycle_id", sa.Text),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("occurred_at", TIME, nullable=False),
        sa.Column("event", JSONB, nullable=False),
    )
    op.create_index("cycle_events_by_cycle", "cycle_events", ["cycle_id", "occurred_at"])
    op.create_index("cycle_events_by_task", "cycle_events", ["task", "topic", "occurred_at"])
    op.create_table(
        "progress",
        sa.Column("cycle_id", sa.Text, primary_key=True),
        sa.Column("occurred_at", TIME, nullable=False),
        sa.Column("event", JSONB, nullable=False),
        sa.Column("losses", JSONB, nullable=False),
    )
    op.create_table(
        "hours",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("task_revision", sa.Text, primary_key=True),
        sa.Column("hour", TIME, primary_key=True),
        sa.Column("variant", sa.Text, primary_key=True),
        sa.Column("adapter", sa.Text, primary_key=True),
        sa.Column("occurred_at", TIME, nullable=False),
        sa.Column("predictions", sa.BigInteger, nullable=False),
        sa.Column("event", JSONB, nullable=False),
    )
    op.create_table(
        "forgotten",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("subject_hash", sa.Text, primary_key=True),
        sa.Column("at", TIME, nullable=False),
    )
    op.create_table(
        "offsets",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )
    op.create_table("broker_incarnation", sa.Column("incarnation", sa.Text, primary_key=True))
