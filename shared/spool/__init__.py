"""A log on local disk between a process that must not wait and a broker that may be down.

writer, flusher   Spool: append, and fsync in the background
reader, frames    SpoolReader: read in order, and advance what is shipped
segments          the format on disk
slots             one folder per writing process, and its locks
records           Record, SpoolPosition, Backlog, SpoolOptions
"""

from __future__ import annotations

from shared.spool.reader import SpoolReader
from shared.spool.records import Backlog, Record, SpooledRecord, SpoolOptions, SpoolPosition, SpoolUnavailable, Sync
from shared.spool.slots import list_slots, lock_for_shipping
from shared.spool.writer import Spool

__all__ = [
    "Backlog",
    "Record",
    "Spool",
    "SpoolOptions",
    "SpoolPosition",
    "SpoolReader",
    "SpoolUnavailable",
    "SpooledRecord",
    "Sync",
    "list_slots",
    "lock_for_shipping",
]
