"""The tables of schema `scheduler`, as `migrations/` makes them."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, DateTime, Integer, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from shared.storage.offsets import offsets_table

METADATA = MetaData()
_TIME = DateTime(timezone=True)
CYCLES = Table(
    "cycles",
    METADATA,
    Column("cycle_id", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("started", JSONB, nullable=False),
    Column("announced", Boolean, nullable=False),
    Column("timeout_minutes", Integer, nullable=False),
    Column("step", Text, nullable=False),
    Column("step_since", _TIME, nullable=False),
    Column("progress_at", _TIME),
    Column("late_step", Text),
    Column("waits", Boolean, nullable=False),
    Column("finished", JSONB),
    Column("finished_by", Uuid),
    Column("end_announced", Boolean, nullable=False),
)
SCHEDULED_RUNS = Table(
    "scheduled_runs",
    METADATA,
    Column("task", Text, primary_key=True),
    Column("cron", Text, nullable=False),
    Column("considered_at", _TIME, nullable=False),
)
OFFSETS = offsets_table(METADATA)
"""How far the scheduler's own announcements were read."""
