"""What the clients sent and what they were told: an SQLite file of the harness, which no service knows.

Every event carries a marker of the client's own (in a field that is stored as it comes), so that a row in the lake is
recognised even when the connection broke before the client got its id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TABLES = """
CREATE TABLE IF NOT EXISTS predictions (
  marker TEXT PRIMARY KEY, way TEXT NOT NULL, user TEXT, low INTEGER NOT NULL,
  outcome TEXT NOT NULL DEFAULT 'unknown', prediction_id TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feedback (
  prediction_id TEXT PRIMARY KEY, user TEXT, negative INTEGER NOT NULL, outcome TEXT NOT NULL DEFAULT 'unknown'
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten (user TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""
ACCEPTED, REFUSED, UNKNOWN = "accepted", "refused", "unknown"
MARK = "mark-"
"""How every marker begins."""


@dataclass(frozen=True)
class Sent:
    """One prediction that is about to be sent. `way`: predictions, chat or direct. `low`: its confidence is low."""

    marker: str
    way: str
    user: str | None = None
    low: bool = False


class Ledger:
    """The file. What is sent is noted before it is sent, as `unknown`; what the answer was, after."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")  # It must outlive the services, not this machine.
        self._db.executescript(_TABLES)
        self.counts = {ACCEPTED: 0, REFUSED: 0, UNKNOWN: 0}

    def sending(self, items: Sequence[Sent]) -> None:
        rows = [(one.marker, one.way, one.user, one.low) for one in items]
        with self._db:
            self._db.executemany("INSERT INTO predictions (marker, way, user, low) VALUES (?, ?, ?, ?)", rows)
        self.counts[UNKNOWN] += len(items)

    def accepted(self, ids: Iterable[tuple[str, str]]) -> None:
        """Pairs of marker and the prediction id that the client was given. The same again is no second promise."""
        with self._db:
            for marker, prediction_id in ids:
                found = self._db.execute(
                    "UPDATE predictions SET outcome = 'accepted', prediction_id = ? "
                    "WHERE marker = ? AND outcome != 'accepted'",
                    (prediction_id, marker),
                )
                self.counts[ACCEPTED] += found.rowcount
                self.counts[UNKNOWN] -= found.rowcount

    def refused(self, markers: Sequence[str]) -> None:
        with self._db:
            self._db.executemany(
                "UPDATE predictions SET outcome = 'refused' WHERE marker = ?", [(marker,) for marker in markers]
            )
        self.counts[REFUSED] += len(markers)
        self.counts[UNKNOWN] -= len(markers)

    def feedback_sending(self, prediction_id: str, user: str | None, negative: bool) -> None:
        with self._db:
            self._db.execute(
                "INSERT INTO feedback (prediction_id, user, negative) VALUES (?, ?, ?)",
                (prediction_id, user, negative),
            )

    def feedback_told(self, prediction_id: str, outcome: str) -> None:
        with self._db:
            self._db.execute("UPDATE feedback SET outcome = ? WHERE prediction_id = ?", (outcome, prediction_id))

    def forgotten(self, user: str, at: float) -> None:
        with self._db:
            self._db.execute("INSERT INTO forgotten VALUES (?, ?)", (user, at))

    def expected(self, way: str = "%") -> set[str]:
        """Ids that the lake must hold: accepted, and not of a forgotten person; of all ways, or of one."""
        query = (
            "SELECT prediction_id FROM predictions WHERE outcome = 'accepted' AND way LIKE ? "
            "AND (user IS NULL OR user NOT IN (SELECT user FROM forgotten))"
        )
        return {row[0] for row in self._db.execute(query, (way,))}

    def expected_feedback(self) -> set[str]:
        """Prediction ids whose feedback the lake must hold."""
        query = (
            "SELECT prediction_id FROM feedback WHERE outcome = 'accepted' "
            "AND (user IS NULL OR user NOT IN (SELECT user FROM forgotten))"
        )
        return {row[0] for row in self._db.execute(query)}

    def close(self) -> None:
        self._db.close()
