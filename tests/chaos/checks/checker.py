"""The independent checker: compares the ledger with the lake, reading both with libraries alone, no code of Ratchet.

    result = check(ledger_file, lake_folder, tasks)
    result.predictions.lost == 0

A row is recognised by the client's marker and the answer's number; a client that got an id must find the row by it.

`lost`: accepted and not stored. `doubled`: an id, or a marker's answer, in more than one row. `changed`: a row that
says anything else than what was sent and answered (`differences.py` says what is compared), or has another id, user,
conversation or request than it should. `invented`: a row that no client sent. `unknown`: sent, but the connection broke
before the client got an answer; it may be stored or not, but as it was sent.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from tests.chaos.checks.lake import Key, ids_by_key, read_rows
from tests.chaos.checks.predictions import Finding, PredictionComparison
from tests.chaos.ledger import ANSWERING


@dataclass
class CheckResult:
    """All tables of the lake compared with the ledger."""

    predictions: Finding
    feedback: Finding
    requests: Finding

    @property
    def is_clean(self) -> bool:
        return self.predictions.is_clean and self.feedback.is_clean and self.requests.is_clean


def check(ledger: Path, lake: Path, tasks: Sequence[str]) -> CheckResult:
    """Compare all tables. Rows of other tasks are ignored: the broker may be shared."""
    db = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        rows = read_rows(lake, "predictions", tasks)
        return CheckResult(
            PredictionComparison(db).compare(rows), _feedback(db, lake, tasks), _requests(db, lake, tasks)
        )
    finally:
        db.close()


def expected_questions(ledger: Path, ids: Mapping[Key, str]) -> tuple[set[str], set[str]]:
    """Return the ids that people must be asked about (accepted, low confidence), and those of forgotten users.

    `ids`: from `ids_by_key`. An answer that is not stored counts by its marker, so that it is missing.
    """
    db = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        rows = db.execute(
            "SELECT marker, answers, user IN (SELECT user FROM forgotten) FROM requests "
            "WHERE outcome = 'accepted' AND low"
        ).fetchall()
    finally:
        db.close()
    expected, forgotten_ids = set[str](), set[str]()
    for marker, answers, forgotten in rows:
        found = {ids.get((marker, number), marker) for number in range(answers)}
        (forgotten_ids if forgotten else expected).update(found)
    return expected, forgotten_ids


def _feedback(db: sqlite3.Connection, lake: Path, tasks: Sequence[str]) -> Finding:
    answers = db.execute(
        "SELECT reference, marker, outcome, prediction_id, user IN (SELECT user FROM forgotten) FROM feedback"
    ).fetchall()
    of_answer = ids_by_key(lake, tasks)
    outcome_of, forgotten_ids, changed = dict[str, str](), set[str](), set[str]()
    for reference, marker, outcome, prediction_id, forgotten in answers:
        is_own_id = "/" in reference
        stored_id = of_answer.get((marker, 0)) if is_own_id else reference
        named = prediction_id or stored_id or reference
        outcome_of[named] = outcome
        if forgotten:
            forgotten_ids.add(named)
        elif prediction_id is not None and stored_id not in (None, prediction_id):
            changed.add(f"{reference}: prediction_id: {stored_id}, {prediction_id}")
    accepted = {i for i, outcome in outcome_of.items() if outcome == "accepted"}
    rows = read_rows(lake, "feedback", tasks, ["prediction_id", "event_id"])
    ids = rows.column("prediction_id").to_pylist()
    stored = set(ids)
    found = Finding(
        accepted=len(accepted), forgotten=len(forgotten_ids & accepted), stored=len(ids),
        unknown=sum(outcome == "unknown" for outcome in outcome_of.values()),
        unknown_stored=sum(outcome_of.get(i) == "unknown" for i in stored),
        refused=sum(outcome == "refused" for outcome in outcome_of.values()),
        refused_stored=sum(outcome_of.get(i) == "refused" for i in stored),
    )  # fmt: skip
    found.lost = found.record("lost", accepted - forgotten_ids - stored)
    # Each prediction gets one feedback at most, so its id twice is the same feedback twice.
    found.doubled = found.record("doubled", {i for i, count in Counter(ids).items() if count > 1})
    found.changed = found.record("changed", changed)
    found.invented = found.record("invented", stored - set(outcome_of))
    found.forgotten_left = found.record("forgotten_left", stored & forgotten_ids)
    return found


def _requests(db: sqlite3.Connection, lake: Path, tasks: Sequence[str]) -> Finding:
    """Check that each answered request was observed once, with its status."""
    answered = db.execute(
        "SELECT prediction_id, user IN (SELECT user FROM forgotten) FROM requests JOIN ids USING (marker) "
        f"WHERE channel IN {ANSWERING} AND outcome = 'accepted' AND number = 0"
    ).fetchall()
    accepted, forgotten_ids = {i for i, _ in answered}, {i for i, forgotten in answered if forgotten}
    rows = read_rows(lake, "requests", tasks, ["prediction_id", "event_id", "status"])
    if rows.num_rows:
        rows = rows.filter(pc.equal(rows["status"], 200))
    ids = rows.column("prediction_id").to_pylist()
    found = Finding(accepted=len(accepted), forgotten=len(forgotten_ids), stored=len(ids))
    found.lost = found.record("lost", accepted - forgotten_ids - set(ids))
    found.doubled = found.record("doubled", {i for i, count in Counter(ids).items() if count > 1})
    found.forgotten_left = found.record("forgotten_left", set(ids) & forgotten_ids)
    return found
