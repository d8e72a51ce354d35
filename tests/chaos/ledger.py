"""The ledger of what clients sent and how it was answered: an SQLite file of the harness, which no service reads.

Every event carries a marker chosen by the client, in a field that is stored unchanged: a row in the lake is recognised
even if the connection broke before the client got its id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TABLES = """
CREATE TABLE IF NOT EXISTS predictions (
  marker TEXT PRIMARY KEY, channel TEXT NOT NULL, user TEXT, low INTEGER NOT NULL,
  outcome TEXT NOT NULL DEFAULT 'unknown', prediction_id TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feedback (
  prediction_id TEXT PRIMARY KEY, user TEXT, negative INTEGER NOT NULL, outcome TEXT NOT NULL DEFAULT 'unknown'
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten (user TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""
ACCEPTED, REFUSED, UNKNOWN = "accepted", "refused", "unknown"
MARKER_PREFIX = "marker-"
"""The prefix of every marker."""


@dataclass(frozen=True)
class Sent:
    """A prediction about to be sent. `channel`: predictions, chat or direct. `low`: its confidence is low."""

    marker: str
    channel: str
    user: str | None = None
    low: bool = False


class Ledger:
    """The ledger file. An event is recorded as `unknown` before it is sent, and by its answer afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")  # It must survive the services, not a power failure.
        self._db.executescript(_TABLES)
        self.counts = {ACCEPTED: 0, REFUSED: 0, UNKNOWN: 0}

    def record_sending(self, items: Sequence[Sent]) -> None:
        rows = [(sent.marker, sent.channel, sent.user, sent.low) for sent in items]
        with self._db:
            self._db.executemany("INSERT INTO predictions (marker, channel, user, low) VALUES (?, ?, ?, ?)", rows)
        self.counts[UNKNOWN] += len(items)

    def record_accepted(self, ids: Iterable[tuple[str, str]]) -> None:
        """Record pairs of a marker and the prediction id that the client got. Idempotent."""
        with self._db:
            for marker, prediction_id in ids:
                updated = self._db.execute(
                    "UPDATE predictions SET outcome = 'accepted', prediction_id = ? "
                    "WHERE marker = ? AND outcome != 'accepted'",
                    (prediction_id, marker),
                )
                self.counts[ACCEPTED] += updated.rowcount
                self.counts[UNKNOWN] -= updated.rowcount

    def record_refused(self, markers: Sequence[str]) -> None:
        with self._db:
            self._db.executemany(
                "UPDATE predictions SET outcome = 'refused' WHERE marker = ?", [(marker,) for marker in markers]
            )
        self.counts[REFUSED] += len(markers)
        self.counts[UNKNOWN] -= len(markers)

    def record_feedback(self, prediction_id: str, user: str | None, negative: bool) -> None:
        with self._db:
            self._db.execute(
                "INSERT INTO feedback (prediction_id, user, negative) VALUES (?, ?, ?)",
                (prediction_id, user, negative),
            )

    def record_feedback_outcome(self, prediction_id: str, outcome: str) -> None:
        with self._db:
            self._db.execute("UPDATE feedback SET outcome = ? WHERE prediction_id = ?", (outcome, prediction_id))

    def record_forgotten(self, user: str, at: float) -> None:
        with self._db:
            self._db.execute("INSERT INTO forgotten VALUES (?, ?)", (user, at))

    def expected(self, channel: str = "%") -> set[str]:
        """Return the ids that the lake must hold, of one channel or of all: accepted, and not of a forgotten user."""
        query = (
            "SELECT prediction_id FROM predictions WHERE outcome = 'accepted' AND channel LIKE ? "
            "AND (user IS NULL OR user NOT IN (SELECT user FROM forgotten))"
        )
        return {row[0] for row in self._db.execute(query, (channel,))}

    def expected_feedback(self) -> set[str]:
        """Return the prediction ids whose feedback the lake must hold."""
        query = (
            "SELECT prediction_id FROM feedback WHERE outcome = 'accepted' "
            "AND (user IS NULL OR user NOT IN (SELECT user FROM forgotten))"
        )
        return {row[0] for row in self._db.execute(query)}

    def close(self) -> None:
        self._db.close()
