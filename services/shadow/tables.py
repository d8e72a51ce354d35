"""The tables of schema `shadow`, as `migrations/` makes them. They hold counts and ids, no texts; of people only who is
forgotten, by their keyed hash."""

from __future__ import annotations

import sqlalchemy as sa

from shared.privacy.erasure import erased_subjects_table
from shared.storage.offsets import incarnation_table, offsets_table

METADATA = sa.MetaData()
DECISIONS = sa.Table(
    "decisions", METADATA, sa.Column("from_backlog", sa.Boolean, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True), sa.Column("record_offset", sa.BigInteger, primary_key=True),
    sa.Column("request_id", sa.Text), sa.Column("rollout_id", sa.Text), sa.Column("task", sa.Text),
    sa.Column("outcome", sa.Text),
)  # fmt: skip
MINUTES = sa.Table(
    "minutes", METADATA,
    sa.Column("task", sa.Text, primary_key=True), sa.Column("minute", sa.DateTime(timezone=True), primary_key=True),
    sa.Column("requests", sa.BigInteger),
)  # fmt: skip
HOURS = sa.Table(
    "hours", METADATA,
    sa.Column("task", sa.Text, primary_key=True), sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
    sa.Column("busy_ms", sa.Double),
)  # fmt: skip
DAYS = sa.Table(
    "days", METADATA,
    sa.Column("task", sa.Text, primary_key=True), sa.Column("day", sa.Date, primary_key=True),
    sa.Column("tokens", sa.BigInteger),
)  # fmt: skip
OUTCOMES = sa.Table(
    "outcomes", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("outcome", sa.Text, primary_key=True),
    sa.Column("task", sa.Text), sa.Column("requests", sa.BigInteger),
)  # fmt: skip
BACKLOGS = sa.Table(
    "backlogs", METADATA,
    sa.Column("rollout_id", sa.Text, primary_key=True), sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("task", sa.Text), sa.Column("next_offset", sa.BigInteger), sa.Column("end_offset", sa.BigInteger),
)  # fmt: skip
FORGOTTEN = erased_subjects_table(METADATA)
OFFSETS = offsets_table(METADATA)
INCARNATION = incarnation_table(METADATA)
