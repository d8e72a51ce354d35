"""Refuses a table of the lake that has the shape of an older version: no reader may guess what its rows mean."""

from __future__ import annotations

from collections.abc import Collection

from schemas.lake import missing_columns
from shared.errors import ConfigurationError, MustStop

_MAX_NAMES = 5


class OldLake(ConfigurationError, MustStop):
    """A table of the lake has the shape of an older version: a service does not start with it, one that runs stops."""


def check_columns(uri: str, table: str, columns: Collection[str]) -> None:
    """Raise OldLake if the table of the lake at `uri` lacks columns of `schemas/lake.py` that are never null."""
    if missing := missing_columns(table, columns):
        named = ", ".join(missing[:_MAX_NAMES]) + (", …" if len(missing) > _MAX_NAMES else "")
        raise OldLake(
            f"the table {table} of the lake at {uri} has the shape of an older version (no {named}): it is neither "
            "read nor written",
            f"Move {uri}/{table} away, or name another lake with RATCHET_LAKE: it is filled from Kafka again.",
        )
