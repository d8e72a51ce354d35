"""Compares the table of predictions with the ledger."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tests.chaos.checks.differences import differences, has_personal_data
from tests.chaos.checks.lake import Key, marker_of
from tests.chaos.checks.rows import facts_of_row, facts_of_said, plain_answer

MAX_EXAMPLES = 20
"""Maximum number of ids that a finding names; the counts are of all."""
PROBLEMS = ("lost", "doubled", "changed", "invented", "forgotten_left")
"""The counts that must be 0."""
_ROWS_AT_ONCE = 1_000
_OUTCOMES = ("accepted", "unknown", "refused")


@dataclass
class Finding:
    """One table compared with the ledger, as counts. `examples` has some ids of each problem, `changed_fields` how
    often each field was changed."""

    accepted: int = 0
    forgotten: int = 0
    stored: int = 0
    compared: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    invented: int = 0
    forgotten_left: int = 0
    unknown: int = 0
    unknown_stored: int = 0
    refused: int = 0
    refused_stored: int = 0
    changed_fields: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """True if no row is lost, doubled, changed, invented or left of a forgotten user."""
        return not any(getattr(self, problem) for problem in PROBLEMS)

    def record(self, problem: str, ids: set[str]) -> int:
        if ids:
            self.examples[problem] = sorted(ids)[:MAX_EXAMPLES]
        return len(ids)


class _OneToOne:
    """Names that must have one hash or id each, and none of another name's."""

    def __init__(self) -> None:
        self._there: dict[str, str] = {}
        self._back: dict[str, str] = {}

    def agrees(self, name: str | None, value: str | None) -> bool:
        """Return True if the pair fits all pairs before it."""
        if name is None or value is None:
            return name is None and value is None
        return self._there.setdefault(name, value) == value and self._back.setdefault(value, name) == name


@dataclass(frozen=True)
class _Sent:
    user: str | None
    forgotten: bool
    outcome: str
    answers: int


class PredictionComparison:
    """Compares the table of predictions."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        query = "SELECT marker, user, user IN (SELECT user FROM forgotten), outcome, answers FROM requests"
        self._sent = {marker: _Sent(user, bool(gone), *rest) for marker, user, gone, *rest in db.execute(query)}
        self._given = {(m, n): i for m, n, i in db.execute("SELECT marker, number, prediction_id FROM ids")}
        self._owner = {prediction_id: key for key, prediction_id in self._given.items()}
        self._users, self._sessions, self._requests = _OneToOne(), _OneToOne(), _OneToOne()
        self._keys: Counter[Key] = Counter()
        self._ids: dict[str, set[Key]] = {}
        self._id_rows: Counter[str] = Counter()
        self._changed: dict[Key, list[str]] = {}
        self._invented: set[str] = set()

    def compare(self, rows: pa.Table) -> Finding:
        """Compare all rows. To be called once."""
        found = Finding()
        for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                self._add(row, found)
        keys = {(marker, n): sent for marker, sent in self._sent.items() for n in range(sent.answers)}
        of = {outcome: {k for k, sent in keys.items() if sent.outcome == outcome} for outcome in _OUTCOMES}
        gone = {key for key, sent in keys.items() if sent.forgotten}
        stored = set(self._keys)
        found.accepted, found.forgotten = len(of["accepted"]), len(of["accepted"] & gone)
        found.unknown, found.unknown_stored = len(of["unknown"]), len(of["unknown"] & stored)
        found.refused, found.refused_stored = len(of["refused"]), len(of["refused"] & stored)
        found.lost = found.record("lost", self._names(of["accepted"] - gone - stored))
        doubled = {key for key, count in self._keys.items() if count > 1}
        doubled |= {key for i, count in self._id_rows.items() if count > 1 for key in self._ids[i]}
        found.doubled = found.record("doubled", self._names(doubled))
        found.invented = found.record("invented", self._invented)
        found.forgotten_left = found.record("forgotten_left", self._names(gone & stored))
        sentences = {f"{name}: {'; '.join(what)}" for key, what in self._changed.items() for name in self._names({key})}
        found.changed = found.record("changed", sentences)
        fields = (_field(what) for sentences in self._changed.values() for what in sentences)
        found.changed_fields = dict(Counter(fields).most_common())
        return found

    def _add(self, row: Mapping[str, Any], found: Finding) -> None:
        found.stored += 1
        marker = marker_of(row["metadata"])
        key, prediction_id = (marker, row["answer_number"]), row["prediction_id"]
        sent = self._sent.get(marker)
        if sent is None or not 0 <= row["answer_number"] < sent.answers:
            self._invented.add(prediction_id)
            return
        self._keys[key] += 1
        self._id_rows[prediction_id] += 1
        self._ids.setdefault(prediction_id, set()).add(key)
        found.compared += 1
        if what := list(self._differences(row, key, sent)):
            self._changed[key] = what

    def _differences(self, row: Mapping[str, Any], key: Key, sent: _Sent) -> Iterator[str]:
        marker, number = key
        said = json.loads(self._db.execute("SELECT said FROM requests WHERE marker = ?", (marker,)).fetchone()[0])
        given, owner = self._given.get(key, row["prediction_id"]), self._owner.get(row["prediction_id"], key)
        if given != row["prediction_id"] or owner != key:
            yield f"prediction_id: {given}, {row['prediction_id']}"
        expected, may_be_cut = facts_of_said(said, number), sent.outcome != "accepted"
        yield from differences(expected, facts_of_row(row), may_be_cut=may_be_cut)
        if row["answer"] != plain_answer(row):
            yield "answer: not what text, refusal and tool calls say"
        whole = not (may_be_cut or expected["truncated"] or expected["answer"]["truncated"])
        if whole and has_personal_data(said) != (row["redactions"] > 0):
            yield f"redactions: {row['redactions']}"
        for name, names, value in (
            ("user_hash", self._users, sent.user),
            ("session_hash", self._sessions, said.get("session")),
            ("request_id", self._requests, marker),
        ):
            if not names.agrees(value, row[name]):
                yield f"{name}: {value}, {row[name]}"

    def _names(self, keys: set[Key]) -> set[str]:
        """The prediction id of each answer, or its marker where the client got none."""
        return {self._given.get(key, f"{key[0]}/{key[1]}") for key in keys}


def _field(difference: str) -> str:
    """The field of a difference, without the positions in lists."""
    path = difference.partition(":")[0]
    return ".".join("*" if part.isdigit() else part for part in path.split("."))
