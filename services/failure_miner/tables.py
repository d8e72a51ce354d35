"""The tables of schema `failure_miner`, as `migrations/` makes them."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy import Column, Text

from shared.privacy.erasure import erased_subjects_table
from shared.storage.offsets import incarnation_table, offsets_table

METADATA = sa.MetaData()
OFFSETS = offsets_table(METADATA)
INCARNATION = incarnation_table(METADATA)
FORGOTTEN = erased_subjects_table(METADATA)
SUSPECTS = sa.Table(
    "suspects", METADATA,
    Column("prediction_id", Text, primary_key=True), Column("task", Text), Column("task_revision", Text),
    Column("occurred_at", sa.DateTime(timezone=True)), Column("text", Text), Column("answer", Text),
    Column("confidence", sa.Float), Column("topic", Text), Column("partition", sa.Integer),
    Column("offset", sa.BigInteger), Column("embedding", sa.LargeBinary), Column("user_hash", Text),
    Column("label", Text), Column("label_partition", sa.Integer), Column("label_offset", sa.BigInteger),
    Column("label_at", sa.DateTime(timezone=True)), Column("label_request", Text), Column("label_reviewer", Text),
    Column("cycle_id", Text), Column("mode_id", Text),
)  # fmt: skip
MODES = sa.Table(
    "modes", METADATA,
    Column("mode_id", Text, primary_key=True), Column("task", Text), Column("task_revision", Text),
    Column("name", Text), Column("centroid", sa.LargeBinary), Column("first_cycle", Text), Column("last_cycle", Text),
)  # fmt: skip
ASKED = sa.Table(
    "asked", METADATA,
    Column("prediction_id", Text, primary_key=True), Column("purpose", Text, primary_key=True),
    Column("probability", sa.Float), Column("drawn_probability", sa.Float), Column("task", Text),
    Column("task_revision", Text), Column("predicted_at", sa.DateTime(timezone=True)), Column("user_hash", Text),
)  # fmt: skip
SAMPLING = sa.Table(
    "sampling", METADATA,
    Column("task", Text, primary_key=True), Column("day", sa.Date, primary_key=True),
    Column("stratum", Text, primary_key=True), Column("rate", sa.Float), Column("seen", sa.BigInteger),
    Column("asked", sa.BigInteger), Column("refused", sa.BigInteger),
)  # fmt: skip
CLUSTERINGS = sa.Table(
    "clusterings", METADATA, Column("cycle_id", Text, primary_key=True), Column("task", Text), Column("event", Text)
)


def is_one_of(column: Column[str], ids: Iterable[str]) -> sa.ColumnElement[bool]:
    """Return the condition that a column has one of these ids. A statement may have 65,535 parameters: it is one."""
    return column == sa.any_(sa.literal(list(ids), sa.ARRAY(Text)))
