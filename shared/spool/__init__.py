"""A local log on disk between a process that must not wait and a broker that may be away."""

from __future__ import annotations

from shared.spool.reader import SpoolReader
from shared.spool.records import Backlog, Position, Record, Spooled, SpoolFull, SpoolOptions, Sync
from shared.spool.slots import lock_for_shipping, slots
from shared.spool.writer import Spool

__all__ = [
    "Backlog",
    "Position",
    "Record",
    "Spool",
    "SpoolFull",
    "SpoolOptions",
    "SpoolReader",
    "Spooled",
    "Sync",
    "lock_for_shipping",
    "slots",
]
