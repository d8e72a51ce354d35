"""Rollouts, their ledgers, labels, canary observations, and the people who were erased."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "deployer_0001_fresh"  # Not the id of a database with other columns, which is refused.
down_revision = None


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("rollout_id", sa.Text, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("task_revision", sa.Text, nullable=False),
        sa.Column("cycle_id", sa.Text),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("primary_adapter", sa.Text),
        sa.Column("previous_adapter", sa.Text),
        sa.Column("candidate_adapter", sa.Text, nullable=False),
        sa.Column("candidate_uri", sa.Text, nullable=False),
        sa.Column("dataset_id", sa.Text, nullable=False),
        sa.Column("dataset_uri", sa.Text, nullable=False),
        sa.Column("data_cutoff", sa.DateTime(timezone=True), nullable=False),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("opponent", sa.Text),
        sa.Column("verdict_id", sa.Text, nullable=False, unique=True),
        sa.Column("asked_against", sa.Text, nullable=False),
        sa.Column("alpha", sa.Double, nullable=False),
        sa.Column("alpha_drawn", sa.Double, nullable=False),
        sa.Column("entered_at", sa.DateTime(timezone=True)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stage_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("evidence", JSONB, nullable=False),
        sa.Column("moved_by", sa.Text, nullable=False),
        sa.Column("paused", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("moves_flags", sa.Boolean, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
        sa.Column("canary_percent", sa.Integer, nullable=False),
        sa.Column("step_since", sa.DateTime(timezone=True)),
        sa.Column("control", sa.Boolean, nullable=False),
        sa.Column("change", sa.BigInteger, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
    )
    op.execute("CREATE SEQUENCE changes")
    op.create_index("rollouts_by_task", "rollouts", ["task", "entry"])
    op.create_index("one_active_a_task", "rollouts", ["task"], unique=True,
                    postgresql_where=sa.text("entered_at IS NOT NULL AND stage IN ('shadow', 'canary')"))  # fmt: skip
    op.create_index("one_waiting_a_task", "rollouts", ["task"], unique=True,
                    postgresql_where=sa.text("stage = 'queued'"))  # fmt: skip
    op.create_table(
        "moves",
        sa.Column("rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("change", sa.BigInteger, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("cycle_id", sa.Text),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("posted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("candidate", sa.Text, nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("canary_percent", sa.Integer, nullable=False),
        sa.Column("paused", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("moved_by", sa.Text, nullable=False),
        sa.Column("evidence", JSONB, nullable=False),
    )
    op.create_index("moves_by_task", "moves", ["task", "change"])
    op.create_table(
        "ledger",
        sa.Column("rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), primary_key=True),
        sa.Column("pair_id", sa.Text, primary_key=True),
        sa.Column("number", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("prediction_id", sa.Text, nullable=False),
        sa.Column("user_hash", sa.Text),
        sa.Column("session_hash", sa.Text),
        sa.Column("user_key", sa.Text, nullable=False),
        sa.Column("identified", sa.Boolean, nullable=False),
        sa.Column("agree", sa.Boolean, nullable=False),
        sa.Column("first", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("fresh", sa.Boolean, nullable=False),
        sa.Column("call", sa.JSON),
        sa.Column("production_answer", sa.JSON),
        sa.Column("candidate_answer", sa.JSON),
        sa.Column("candidate_first", sa.Boolean, nullable=False),
        sa.Column("ticket_id", sa.Text, unique=True),
        sa.Column("ticket_order", sa.BigInteger),
        sa.Column("asked", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("published", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("outcome", sa.Double),
        sa.Column("logged_at", sa.DateTime(timezone=True)),
    )
    op.create_index("ledger_by_person", "ledger", ["user_hash"])
    op.create_index("one_first_a_user", "ledger", ["rollout_id", "user_key", "fresh"], unique=True,
                    postgresql_where=sa.text("first"))  # fmt: skip
    op.create_index("one_order_a_rollout", "ledger", ["rollout_id", "ticket_order"], unique=True)
    op.create_table(
        "labels",
        sa.Column("ticket_id", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("reviewer", sa.Text, primary_key=True),
        sa.Column("correction_id", sa.Text, nullable=False),
        sa.Column("outcome", sa.Double),
        sa.Column("given_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("edits", sa.Integer, nullable=False, server_default="0"),
    )
    op.create_table(
        "canary_requests",
        sa.Column("rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "canary_users",
        sa.Column("rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), primary_key=True),
        sa.Column("percent", sa.Integer, primary_key=True),
        sa.Column("user_key", sa.Text, primary_key=True),
    )
    op.create_table(
        "canary_answers",
        sa.Column("rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), primary_key=True),
        sa.Column("prediction_id", sa.Text, primary_key=True),
        sa.Column("user_key", sa.Text),
        sa.Column("rank", sa.BigInteger, nullable=False),
    )
    op.create_index("canary_answers_by_rank", "canary_answers", ["rollout_id", "rank"])
    op.create_table(
        "bad_users",
        sa.Column("rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), primary_key=True),
        sa.Column("guard", sa.Text, primary_key=True),
        sa.Column("user_key", sa.Text, primary_key=True),
        sa.Column("canary", sa.Boolean, nullable=False),
        sa.Column("percent", sa.Integer, nullable=False),
    )
    op.create_table(
        "latencies",
        sa.Column("rollout_id", sa.Text, sa.ForeignKey("rollouts.rollout_id"), primary_key=True),
        sa.Column("user_key", sa.Text, primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("canary", sa.Boolean, primary_key=True),
        sa.Column("rank", sa.BigInteger, nullable=False),
        sa.Column("latency_ms", sa.Double, nullable=False),
        sa.Column("confidence", sa.Double),
    )
    op.create_table(
        "forgotten",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("subject_hash", sa.Text, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
