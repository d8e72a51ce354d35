"""The tables of schema `dataset_builder`, as `migrations/` makes them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, Text

from shared.privacy.erasure import erased_subjects_table
from shared.storage.offsets import incarnation_table, offsets_table

METADATA = sa.MetaData()
OFFSETS = offsets_table(METADATA)
INCARNATION = incarnation_table(METADATA)
FORGOTTEN = erased_subjects_table(METADATA)
CORRECTIONS = sa.Table(
    "corrections", METADATA,
    Column("correction_id", Text, primary_key=True), Column("prediction_id", Text), Column("task", Text),
    Column("origin", Text), Column("user_hash", Text), Column("author_hash", Text), Column("topic", Text),
    Column("partition", sa.Integer), Column("offset", sa.BigInteger), Column("event", Text),
    Column("happened_at", sa.DateTime(timezone=True)), Column("given_at", sa.DateTime(timezone=True)),
    Column("clear_by", Text),
)  # fmt: skip
REVISIONS = sa.Table(
    "revisions", METADATA,
    Column("task", Text, primary_key=True), Column("revision", Text, primary_key=True), Column("kind", Text),
    Column("system_prompt", Text), Column("answer_form", Text),
)  # fmt: skip
TRAFFIC = sa.Table(
    "traffic", METADATA,
    Column("task", Text, primary_key=True), Column("task_revision", Text, primary_key=True),
    Column("variant", Text, primary_key=True), Column("adapter", Text, primary_key=True),
    Column("hour", sa.DateTime(timezone=True), primary_key=True), Column("answers", sa.JSON),
    Column("occurred_at", sa.DateTime(timezone=True)),
)  # fmt: skip
PLACES = sa.Table(
    "places", METADATA,
    Column("task", Text, primary_key=True), Column("prediction_id", Text, primary_key=True), Column("fate", Text),
    Column("group", Text), Column("user_hash", Text), Column("happened_at", sa.DateTime(timezone=True)),
    Column("fingerprint", sa.LargeBinary), Column("cycle_id", Text),
)  # fmt: skip
BUILDS = sa.Table(
    "builds", METADATA,
    Column("cycle_id", Text, primary_key=True), Column("task", Text), Column("topic", Text), Column("event", Text),
    Column("ended_at", sa.DateTime(timezone=True)), Column("cycle_failed", sa.Boolean),
)  # fmt: skip
