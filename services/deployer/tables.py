"""The tables of schema `deployer`, as `migrations/` creates them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from shared.privacy.erasure import erased_subjects_table
from shared.storage.offsets import incarnation_table, offsets_table

METADATA = sa.MetaData()
_TEXTS = sa.JSON(none_as_null=True)
"""Not JSONB: it reorders the keys of objects, such as tools, which then read otherwise, and it refuses NUL."""
ROLLOUTS = sa.Table(
    "rollouts", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("task", sa.Text),
    sa.Column("task_revision", sa.Text), sa.Column("cycle_id", sa.Text), sa.Column("stage", sa.Text),
    sa.Column("primary_adapter", sa.Text, key="primary"), sa.Column("previous_adapter", sa.Text, key="previous"),
    sa.Column("candidate_adapter", sa.Text, key="candidate"), sa.Column("candidate_uri", sa.Text),
    sa.Column("dataset_id", sa.Text), sa.Column("dataset_uri", sa.Text),
    sa.Column("data_cutoff", sa.DateTime(timezone=True)),
    sa.Column("spec", JSONB), sa.Column("opponent", sa.Text), sa.Column("verdict_id", sa.Text),
    sa.Column("asked_against", sa.Text), sa.Column("alpha", sa.Double), sa.Column("alpha_drawn", sa.Double),
    sa.Column("entered_at", sa.DateTime(timezone=True)),
    sa.Column("reason", sa.Text), sa.Column("changed_at", sa.DateTime(timezone=True)),
    sa.Column("stage_since", sa.DateTime(timezone=True)), sa.Column("evidence", JSONB),
    sa.Column("moved_by", sa.Text), sa.Column("paused", sa.Text), sa.Column("version", sa.Integer),
    sa.Column("moves_flags", sa.Boolean), sa.Column("settled", sa.Boolean),
    sa.Column("canary_percent", sa.Integer), sa.Column("step_since", sa.DateTime(timezone=True)),
    sa.Column("control", sa.Boolean), sa.Column("before", JSONB(none_as_null=True)),
    sa.Column("counted_percent", sa.Integer), sa.Column("counted_since", sa.DateTime(timezone=True)),
    sa.Column("resets", sa.Text), sa.Column("former_verdicts", sa.ARRAY(sa.Text)),
    sa.Column("log_entry", sa.BigInteger), sa.Column("replays_ended", sa.Boolean),
    sa.Column("asked_version", sa.Integer),
    sa.Column("change", sa.BigInteger), sa.Column("entry", sa.BigInteger),
)  # fmt: skip
MOVES = sa.Table(
    "moves", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("change", sa.BigInteger), sa.Column("task", sa.Text), sa.Column("cycle_id", sa.Text),
    sa.Column("at", sa.DateTime(timezone=True)), sa.Column("posted", sa.Boolean),
    sa.Column("candidate", sa.Text), sa.Column("stage", sa.Text), sa.Column("canary_percent", sa.Integer),
    sa.Column("paused", sa.Text), sa.Column("reason", sa.Text), sa.Column("moved_by", sa.Text),
    sa.Column("evidence", JSONB),
)  # fmt: skip
"""Every change of every rollout. Rows are only ever added; `posted` says whether the webhook has it."""
LEDGER = sa.Table(
    "ledger", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("pair_id", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger), sa.Column("prediction_id", sa.Text), sa.Column("user_hash", sa.Text),
    sa.Column("session_hash", sa.Text), sa.Column("user_key", sa.Text),
    sa.Column("identified", sa.Boolean), sa.Column("agree", sa.Boolean),
    sa.Column("first", sa.Boolean), sa.Column("opens", sa.Boolean), sa.Column("fresh", sa.Boolean),
    sa.Column("call", _TEXTS), sa.Column("production_answer", _TEXTS),
    sa.Column("candidate_answer", _TEXTS), sa.Column("candidate_first", sa.Boolean),
    sa.Column("ticket_id", sa.Text), sa.Column("ticket_order", sa.BigInteger), sa.Column("asked", sa.Boolean),
    sa.Column("published", sa.Boolean), sa.Column("outcome", sa.Double),
    sa.Column("logged_at", sa.DateTime(timezone=True)),
)  # fmt: skip
LABELS = sa.Table(
    "labels", METADATA,
    sa.Column("ticket_id", sa.Text, primary_key=True), sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("reviewer", sa.Text, primary_key=True), sa.Column("correction_id", sa.Text),
    sa.Column("outcome", sa.Double), sa.Column("given_at", sa.DateTime(timezone=True)), sa.Column("edits", sa.Integer),
)  # fmt: skip
REQUESTS = sa.Table(
    "canary_requests", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("source", sa.Text, primary_key=True),
    sa.Column("next_offset", sa.BigInteger), sa.Column("requests", sa.BigInteger), sa.Column("failed", sa.BigInteger),
)  # fmt: skip
"""Numbers of the canary's requests, a row for each partition that they are read from, counted up to `next_offset`."""
SERVED = sa.Table(
    "canary_users", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("percent", sa.Integer, primary_key=True),
    sa.Column("user_key", sa.Text, primary_key=True),
)  # fmt: skip
"""Subjects whom each step of the canary has served, as many as the next step needs."""
ANSWERS = sa.Table(
    "canary_answers", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("prediction_id", sa.Text, primary_key=True),
    sa.Column("user_key", sa.Text), sa.Column("rank", sa.BigInteger), sa.Column("percent", sa.Integer),
    sa.Column("canary", sa.Boolean),
)  # fmt: skip
"""A random sample of the canary's answers, after a promotion of the control's, too, by which complaints are attributed,
each with the canary's share then, where that is known; deleted with the end of the rollout."""
BAD_USERS = sa.Table(
    "bad_users", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("guard", sa.Text, primary_key=True),
    sa.Column("user_key", sa.Text, primary_key=True), sa.Column("canary", sa.Boolean), sa.Column("percent", sa.Integer),
)  # fmt: skip
"""Subjects with a bad event, each in the arm of the first one, and the canary's share of users when it was counted."""
LATENCIES = sa.Table(
    "latencies", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("user_key", sa.Text, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True), sa.Column("canary", sa.Boolean, primary_key=True),
    sa.Column("rank", sa.BigInteger), sa.Column("latency_ms", sa.Double), sa.Column("confidence", sa.Double),
)  # fmt: skip
DAY_SUBJECTS = sa.Table(
    "day_subjects", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("user_key", sa.Text, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
)  # fmt: skip
"""Subjects of either arm whose first answer of the day was seen while there is a canary, as many as are compared."""
FORGOTTEN = erased_subjects_table(METADATA)
OFFSETS = offsets_table(METADATA)
INCARNATION = incarnation_table(METADATA)
