"""The independent checker: compares the ledger with the lake, reading both with libraries alone, no code of Ratchet.

    result = check(ledger_file, lake_folder, task)
    result.predictions.lost == 0

`lost`: accepted and not stored. `doubled`: an id, or a client's marker, in more than one row. `invented`: a row that no
client sent. `unknown`: sent, but the connection broke before the client got an answer; it may be stored or not.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from tests.chaos.ledger import MARKER_PREFIX

MAX_EXAMPLES = 20
"""Maximum number of ids that a finding names; the counts are of all."""


@dataclass
class Finding:
    """One table compared with the ledger, as counts. `examples` has some ids of each problem."""

    accepted: int = 0
    forgotten: int = 0
    stored: int = 0
    lost: int = 0
    doubled: int = 0
    invented: int = 0
    forgotten_left: int = 0
    unknown: int = 0
    unknown_stored: int = 0
    refused: int = 0
    refused_stored: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """True if no row is lost, doubled, invented or left of a forgotten user."""
        return not (self.lost or self.doubled or self.invented or self.forgotten_left)

    def record(self, problem: str, ids: set[str]) -> int:
        if ids:
            self.examples[problem] = sorted(ids)[:MAX_EXAMPLES]
        return len(ids)


@dataclass
class CheckResult:
    """All tables of the lake compared with the ledger."""

    predictions: Finding
    feedback: Finding
    requests: Finding

    @property
    def is_clean(self) -> bool:
        return self.predictions.is_clean and self.feedback.is_clean and self.requests.is_clean


def check(ledger: Path, lake: Path, task: str) -> CheckResult:
    """Compare all tables. Rows of other tasks are ignored: the broker may be shared."""
    db = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        return CheckResult(_predictions(db, lake, task), _feedback(db, lake, task), _requests(db, lake, task))
    finally:
        db.close()


def read_rows(lake: Path, table: str, task: str, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of a task; none if the table does not exist yet."""
    try:
        delta = DeltaTable(str(lake / table))
    except TableNotFoundError:
        return pa.table({name: pa.array([], pa.string()) for name in columns or []})
    return delta.to_pyarrow_table(columns=columns, filters=[("task", "=", task)])


def stored_ids(lake: Path, table: str, task: str) -> set[str]:
    """Return the distinct prediction ids in a table."""
    return set(read_rows(lake, table, task, ["prediction_id"]).column("prediction_id").to_pylist())


def expected_suspects(ledger: Path) -> tuple[set[str], set[str]]:
    """Return the ids that the failure miner must have (accepted, low confidence), and those of forgotten users."""
    db = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        rows = db.execute(
            "SELECT prediction_id, user IN (SELECT user FROM forgotten) FROM predictions "
            "WHERE outcome = 'accepted' AND low"
        ).fetchall()
    finally:
        db.close()
    forgotten_ids = {prediction_id for prediction_id, forgotten in rows if forgotten}
    return {prediction_id for prediction_id, _ in rows} - forgotten_ids, forgotten_ids


def rows_hash(lake: Path, table: str, task: str, key: str) -> str:
    """Return the SHA-256 (hex) of a table's rows, all columns, in the order of `key`."""
    rows = read_rows(lake, table, task)
    if not rows.num_rows:
        return hashlib.sha256(b"").hexdigest()
    rows = rows.select(sorted(rows.column_names)).sort_by(key).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema.remove_metadata()) as writer:
        for batch in rows.replace_schema_metadata(None).to_batches(max_chunksize=65_536):
            writer.write_batch(_compact(batch))
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a copy of the batch: a slice would be written with the whole buffer that it belongs to."""
    return pa.RecordBatch.from_arrays([pa.concat_arrays([column]) for column in batch.columns], schema=batch.schema)


def _predictions(db: sqlite3.Connection, lake: Path, task: str) -> Finding:
    sent = db.execute(
        "SELECT marker, outcome, prediction_id, user IN (SELECT user FROM forgotten) FROM predictions"
    ).fetchall()
    outcome_of = {marker: outcome for marker, outcome, _, _ in sent}
    accepted = {prediction_id: marker for marker, outcome, prediction_id, _ in sent if outcome == "accepted"}
    forgotten_markers = {marker for marker, _, _, forgotten in sent if forgotten}
    forgotten_ids = {prediction_id for prediction_id, marker in accepted.items() if marker in forgotten_markers}
    rows = read_rows(lake, "predictions", task, ["prediction_id", "model", "finish_reason"])
    ids = rows.column("prediction_id").to_pylist()
    markers = [
        _marker(*pair) for pair in zip(rows["model"].to_pylist(), rows["finish_reason"].to_pylist(), strict=True)
    ]
    stored = set(ids)
    of_unknown = {i for i, m in zip(ids, markers, strict=True) if i not in accepted and outcome_of.get(m) == "unknown"}
    of_refused = {i for i, m in zip(ids, markers, strict=True) if i not in accepted and outcome_of.get(m) == "refused"}
    doubled = {i for i, count in Counter(ids).items() if count > 1}
    for marker, count in Counter(m for i, m in set(zip(ids, markers, strict=True)) if m).items():
        if count > 1:
            doubled |= {i for i, m in zip(ids, markers, strict=True) if m == marker}
    remaining = {i for i, m in zip(ids, markers, strict=True) if i in forgotten_ids or m in forgotten_markers}
    found = Finding(
        accepted=len(accepted), forgotten=len(forgotten_ids), stored=len(ids),
        unknown=sum(outcome == "unknown" for outcome in outcome_of.values()), unknown_stored=len(of_unknown),
        refused=sum(outcome == "refused" for outcome in outcome_of.values()), refused_stored=len(of_refused),
    )  # fmt: skip
    # A row with an accepted id and another marker has the content of another request: invented as well.
    swapped = {i for i, m in zip(ids, markers, strict=True) if i in accepted and m != accepted[i]}
    found.lost = found.record("lost", set(accepted) - forgotten_ids - stored)
    found.doubled = found.record("doubled", doubled)
    found.invented = found.record("invented", (stored - set(accepted) - of_unknown - of_refused) | swapped)
    found.forgotten_left = found.record("forgotten_left", remaining)
    return found


def _marker(model: str | None, finish_reason: str | None) -> str | None:
    return next((text for text in (model, finish_reason) if text and text.startswith(MARKER_PREFIX)), None)


def _feedback(db: sqlite3.Connection, lake: Path, task: str) -> Finding:
    answers = db.execute("SELECT prediction_id, outcome, user IN (SELECT user FROM forgotten) FROM feedback").fetchall()
    outcome_of = {prediction_id: outcome for prediction_id, outcome, _ in answers}
    accepted = {i for i, outcome in outcome_of.items() if outcome == "accepted"}
    forgotten_ids = {i for i, _, forgotten in answers if forgotten}
    rows = read_rows(lake, "feedback", task, ["prediction_id", "event_id"])
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
    found.invented = found.record("invented", stored - set(outcome_of))
    found.forgotten_left = found.record("forgotten_left", stored & forgotten_ids)
    return found


def _requests(db: sqlite3.Connection, lake: Path, task: str) -> Finding:
    """Check that each answered chat request was observed once, with its status."""
    chats = db.execute(
        "SELECT prediction_id, user IN (SELECT user FROM forgotten) FROM predictions "
        "WHERE channel = 'chat' AND outcome = 'accepted'"
    ).fetchall()
    accepted, forgotten_ids = {i for i, _ in chats}, {i for i, forgotten in chats if forgotten}
    rows = read_rows(lake, "requests", task, ["prediction_id", "event_id", "status"])
    if rows.num_rows:
        rows = rows.filter(pc.equal(rows["status"], 200))
    ids = rows.column("prediction_id").to_pylist()
    found = Finding(accepted=len(accepted), forgotten=len(forgotten_ids), stored=len(ids))
    found.lost = found.record("lost", accepted - forgotten_ids - set(ids))
    found.doubled = found.record("doubled", {i for i, count in Counter(ids).items() if count > 1})
    found.forgotten_left = found.record("forgotten_left", set(ids) & forgotten_ids)
    return found
