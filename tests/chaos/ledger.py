"""The ledger of what clients sent and how it was answered: an SQLite file of the harness, which no service reads.

Every request carries a marker chosen by the client, in its metadata, which is stored unchanged: a row in the lake is
recognised even if the connection broke before the client got its id. `said` is everything that the row must say; its
fields are in `load/conversations.py`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE IF NOT EXISTS requests (
  marker TEXT PRIMARY KEY, channel TEXT NOT NULL, task TEXT NOT NULL, user TEXT, low INTEGER NOT NULL,
  answers INTEGER NOT NULL, said TEXT NOT NULL, outcome TEXT NOT NULL DEFAULT 'unknown'
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ids (
  marker TEXT NOT NULL, number INTEGER NOT NULL, prediction_id TEXT NOT NULL, PRIMARY KEY (marker, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feedback (
  reference TEXT PRIMARY KEY, marker TEXT NOT NULL, user TEXT, negative INTEGER NOT NULL,
  outcome TEXT NOT NULL DEFAULT 'unknown', prediction_id TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten (user TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""
_NOT_FORGOTTEN = "(user IS NULL OR user NOT IN (SELECT user FROM forgotten))"
ACCEPTED, REFUSED, UNKNOWN = "accepted", "refused", "unknown"
MARKER_PREFIX = "marker-"
"""The prefix of every marker."""
ANSWERING = ("chat", "completions", "responses", "messages")
"""The channels of requests that a model server answers, so that each is observed, too."""


@dataclass(frozen=True)
class Sent:
    """A request about to be sent. `channel`: an API of `ANSWERING`, predictions or direct. `low`: its confidence is
    low, so that the failure miner must take it."""

    marker: str
    channel: str
    task: str
    user: str | None
    low: bool
    said: dict[str, Any]

    @property
    def answers(self) -> int:
        return len(self.said["answers"])


class Ledger:
    """The ledger file. A request is recorded as `unknown` before it is sent, and by its answer afterwards.

    `counts` are of answers: a request for two of them counts twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")  # It must survive the services, not a power failure.
        self._db.executescript(_TABLES)
        self.counts = {ACCEPTED: 0, REFUSED: 0, UNKNOWN: 0}

    def record_sending(self, items: Sequence[Sent]) -> None:
        rows = [(s.marker, s.channel, s.task, s.user, s.low, s.answers, json.dumps(s.said)) for s in items]
        columns = "marker, channel, task, user, low, answers, said"
        with self._db:
            self._db.executemany(f"INSERT INTO requests ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self.counts[UNKNOWN] += sum(sent.answers for sent in items)

    def record_accepted(self, items: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Record pairs of a marker and the prediction ids that the client got, in order. Idempotent.

        There are none where the application has an id of its own.
        """
        with self._db:
            for marker, ids in items:
                self._move(marker, ACCEPTED)
                rows = [(marker, number, prediction_id) for number, prediction_id in enumerate(ids)]
                self._db.executemany("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", rows)

    def record_refused(self, markers: Sequence[str]) -> None:
        with self._db:
            for marker in markers:
                self._move(marker, REFUSED)

    def _move(self, marker: str, outcome: str) -> None:
        """Change an unknown outcome."""
        query = "UPDATE requests SET outcome = ? WHERE marker = ? AND outcome = 'unknown' RETURNING answers"
        for (answers,) in self._db.execute(query, (outcome, marker)).fetchall():
            self.counts[outcome] += answers
            self.counts[UNKNOWN] -= answers

    def record_feedback(self, reference: str, marker: str, user: str | None, negative: bool) -> None:
        """Record feedback about to be sent. `reference`: a prediction id, or `<task>/<the application's own id>`."""
        with self._db:
            self._db.execute(
                "INSERT INTO feedback (reference, marker, user, negative) VALUES (?, ?, ?, ?)",
                (reference, marker, user, negative),
            )

    def record_feedback_outcome(self, reference: str, outcome: str, prediction_id: str | None) -> None:
        """`prediction_id`: the answer says for which prediction it was taken."""
        with self._db:
            self._db.execute(
                "UPDATE feedback SET outcome = ?, prediction_id = ? WHERE reference = ?",
                (outcome, prediction_id, reference),
            )

    def record_forgotten(self, user: str, at: float) -> None:
        with self._db:
            self._db.execute("INSERT INTO forgotten VALUES (?, ?)", (user, at))

    def expected(self) -> set[tuple[str, int]]:
        """Return marker and answer number of each row that the lake must hold: accepted, and not forgotten."""
        query = f"SELECT marker, answers FROM requests WHERE outcome = 'accepted' AND {_NOT_FORGOTTEN}"
        return {(marker, number) for marker, answers in self._db.execute(query) for number in range(answers)}

    def expected_requests(self) -> set[str]:
        """Return the prediction ids by which the answered requests must have been observed."""
        query = (
            "SELECT prediction_id FROM requests JOIN ids USING (marker) WHERE outcome = 'accepted' AND number = 0 "
            f"AND channel IN {ANSWERING} AND {_NOT_FORGOTTEN}"
        )
        return {row[0] for row in self._db.execute(query)}

    def expected_feedback(self) -> set[str]:
        """Return the prediction ids whose feedback the lake must hold."""
        query = f"SELECT prediction_id FROM feedback WHERE outcome = 'accepted' AND {_NOT_FORGOTTEN}"
        return {row[0] for row in self._db.execute(query)}

    def close(self) -> None:
        self._db.close()
