"""The console's tables, PostgreSQL schema `console`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Float, Identity, Integer, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from shared.privacy.erasure import erased_subjects_table
from shared.storage.offsets import incarnation_table, offsets_table

METADATA = MetaData()
_TIME = DateTime(timezone=True)

REQUESTS = Table(
    "requests",
    METADATA,
    Column("request_id", Text, primary_key=True),
    Column("arrived", BigInteger, Identity(), nullable=False),
    Column("task", Text, nullable=False),
    Column("task_revision", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("priority", Float, nullable=False),
    Column("needed", Integer, nullable=False, comment="Answers that are still wanted."),
    Column("asks_label", Boolean, nullable=False, comment="It asks for one of the task's labels, not for a text."),
    Column("user_hash", Text),
    Column("suggested_by", Text, comment="Who wrote the suggestion, if another than `user_hash`: for erasure."),
    Column("prediction_id", Text, nullable=False),
    Column("case_id", Text, nullable=False, comment="Its ticket, else itself: nobody is asked twice about one."),
    Column("cycle_id", Text),
    Column("happened_at", _TIME, nullable=False, comment="When the prediction was made, for erasure and retention."),
    Column("asked_at", _TIME, nullable=False),
    Column("request", Text, nullable=False, comment="The event, as JSON."),
)
ANSWERS = Table(
    "answers",
    METADATA,
    Column("request_id", Text, primary_key=True),
    Column("reviewer", Text, primary_key=True),
    Column("label", Text),
    Column("preference", Text),
    Column("seconds", Float),
    Column("surrogates", JSONB, nullable=False, comment="What stands for personal data in the label."),
    Column("edits", Integer, nullable=False, comment="How often the reviewer has changed it."),
    Column("answered_at", _TIME, nullable=False, comment="When it got as it is."),
)
SKIPS = Table(
    "skips",
    METADATA,
    Column("request_id", Text, primary_key=True),
    Column("reviewer", Text, primary_key=True),
    Column("skipped_at", _TIME, nullable=False, comment="The last time."),
)
EVENTS = Table(
    "cycle_events",
    METADATA,
    Column("event_id", Uuid, primary_key=True),
    Column("task", Text, nullable=False),
    Column("cycle_id", Text),
    Column("topic", Text, nullable=False),
    Column("occurred_at", _TIME, nullable=False),
    Column("event", JSONB, nullable=False),
)
PROGRESS = Table(
    "progress",
    METADATA,
    Column("cycle_id", Text, primary_key=True),
    Column("occurred_at", _TIME, nullable=False),
    Column("event", JSONB, nullable=False),
    Column("losses", JSONB, nullable=False, comment="Of a training, as `Losses`."),
)
HOURS = Table(
    "hours",
    METADATA,
    Column("task", Text, primary_key=True),
    Column("task_revision", Text, primary_key=True),
    Column("hour", _TIME, primary_key=True),
    Column("variant", Text, primary_key=True),
    Column("adapter", Text, primary_key=True),
    Column("occurred_at", _TIME, nullable=False),
    Column("predictions", BigInteger, nullable=False),
    Column("event", JSONB, nullable=False),
)
FORGOTTEN = erased_subjects_table(METADATA)
OFFSETS = offsets_table(METADATA)
INCARNATION = incarnation_table(METADATA)
