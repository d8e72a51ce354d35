"""The independent checker: the ledger against the lake. It reads both by libraries alone, with no code of ours.

    found = check(ledger_file, lake_folder, task)
    found.predictions.lost == 0

`lost`: promised and not there. `doubled`: an id, or a client's marker, in more than one row. `invented`: a row that no
client sent. `unknown`: sent, and the connection broke, so that the client was told nothing: both outcomes are right.
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

from tests.chaos.ledger import MARK

SHOWN = 20
"""Ids that a finding names; the counts are of all."""


@dataclass
class Finding:
    """One table against the ledger. Counts; `examples` names some ids of each trouble."""

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
    def faultless(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.doubled or self.invented or self.forgotten_left)

    def note(self, trouble: str, ids: set[str]) -> int:
        if ids:
            self.examples[trouble] = sorted(ids)[:SHOWN]
        return len(ids)


@dataclass
class Checked:
    """All tables of the lake against the ledger."""

    predictions: Finding
    feedback: Finding
    requests: Finding

    @property
    def faultless(self) -> bool:
        return self.predictions.faultless and self.feedback.faultless and self.requests.faultless


def check(ledger: Path, lake: Path, task: str) -> Checked:
    """Compare everything. Rows of other tasks are not looked at: the broker may be shared."""
    db = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        return Checked(_predictions(db, lake, task), _feedback(db, lake, task), _requests(db, lake, task))
    finally:
        db.close()


def read(lake: Path, table: str, task: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of a task; no rows where the table does not exist yet."""
    try:
        delta = DeltaTable(str(lake / table))
    except TableNotFoundError:
        return pa.table({name: pa.array([], pa.string()) for name in columns or []})
    return delta.to_pyarrow_table(columns=columns, filters=[("task", "=", task)])


def stored_ids(lake: Path, table: str, task: str) -> set[str]:
    """The distinct prediction ids in a table."""
    return set(read(lake, table, task, ["prediction_id"]).column("prediction_id").to_pylist())


def suspects_wanted(ledger: Path) -> tuple[set[str], set[str]]:
    """Ids that the failure miner must know (accepted, of low confidence), and those of forgotten people."""
    db = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        rows = db.execute(
            "SELECT prediction_id, user IN (SELECT user FROM forgotten) FROM predictions "
            "WHERE outcome = 'accepted' AND low"
        ).fetchall()
    finally:
        db.close()
    gone = {prediction_id for prediction_id, forgotten in rows if forgotten}
    return {prediction_id for prediction_id, _ in rows} - gone, gone


def content_hash(lake: Path, table: str, task: str, key: str) -> str:
    """SHA-256 (hex) of a table's rows in the order of `key`, all columns: the same rows, the same hash."""
    rows = read(lake, table, task)
    if not rows.num_rows:
        return hashlib.sha256(b"").hexdigest()
    rows = rows.select(sorted(rows.column_names)).sort_by(key).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema.remove_metadata()) as writer:
        for batch in rows.replace_schema_metadata(None).to_batches(max_chunksize=65_536):
            writer.write_batch(_compact(batch))
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with buffers of its own: a slice of larger ones would be written with what surrounds it."""
    return pa.RecordBatch.from_arrays([pa.concat_arrays([column]) for column in batch.columns], schema=batch.schema)


def _predictions(db: sqlite3.Connection, lake: Path, task: str) -> Finding:
    sent = db.execute(
        "SELECT marker, outcome, prediction_id, user IN (SELECT user FROM forgotten) FROM predictions"
    ).fetchall()
    outcome_of = {marker: outcome for marker, outcome, _, _ in sent}
    promised = {prediction_id: marker for marker, outcome, prediction_id, _ in sent if outcome == "accepted"}
    gone_markers = {marker for marker, _, _, forgotten in sent if forgotten}
    gone = {prediction_id for prediction_id, marker in promised.items() if marker in gone_markers}
    rows = read(lake, "predictions", task, ["prediction_id", "model", "finish_reason"])
    ids = rows.column("prediction_id").to_pylist()
    markers = [
        _marker(*pair) for pair in zip(rows["model"].to_pylist(), rows["finish_reason"].to_pylist(), strict=True)
    ]
    there = set(ids)
    of_unknown = {i for i, m in zip(ids, markers, strict=True) if i not in promised and outcome_of.get(m) == "unknown"}
    of_refused = {i for i, m in zip(ids, markers, strict=True) if i not in promised and outcome_of.get(m) == "refused"}
    twice = {i for i, count in Counter(ids).items() if count > 1}
    for marker, count in Counter(m for i, m in set(zip(ids, markers, strict=True)) if m).items():
        if count > 1:
            twice |= {i for i, m in zip(ids, markers, strict=True) if m == marker}
    left = {i for i, m in zip(ids, markers, strict=True) if i in gone or m in gone_markers}
    found = Finding(
        accepted=len(promised), forgotten=len(gone), stored=len(ids),
        unknown=sum(outcome == "unknown" for outcome in outcome_of.values()), unknown_stored=len(of_unknown),
        refused=sum(outcome == "refused" for outcome in outcome_of.values()), refused_stored=len(of_refused),
    )  # fmt: skip
    # A row whose id was promised for another marker is somebody else's content under that id: invented as well.
    swapped = {i for i, m in zip(ids, markers, strict=True) if i in promised and m != promised[i]}
    found.lost = found.note("lost", set(promised) - gone - there)
    found.doubled = found.note("doubled", twice)
    found.invented = found.note("invented", (there - set(promised) - of_unknown - of_refused) | swapped)
    found.forgotten_left = found.note("forgotten_left", left)
    return found


def _marker(model: str | None, finish_reason: str | None) -> str | None:
    return next((text for text in (model, finish_reason) if text and text.startswith(MARK)), None)


def _feedback(db: sqlite3.Connection, lake: Path, task: str) -> Finding:
    told = db.execute("SELECT prediction_id, outcome, user IN (SELECT user FROM forgotten) FROM feedback").fetchall()
    outcome_of = {prediction_id: outcome for prediction_id, outcome, _ in told}
    promised = {i for i, outcome in outcome_of.items() if outcome == "accepted"}
    gone = {i for i, _, forgotten in told if forgotten}
    rows = read(lake, "feedback", task, ["prediction_id", "event_id"])
    ids = rows.column("prediction_id").to_pylist()
    there = set(ids)
    found = Finding(
        accepted=len(promised), forgotten=len(gone & promised), stored=len(ids),
        unknown=sum(outcome == "unknown" for outcome in outcome_of.values()),
        unknown_stored=sum(outcome_of.get(i) == "unknown" for i in there),
        refused=sum(outcome == "refused" for outcome in outcome_of.values()),
        refused_stored=sum(outcome_of.get(i) == "refused" for i in there),
    )  # fmt: skip
    found.lost = found.note("lost", promised - gone - there)
    # Each prediction gets one feedback at most, so its id twice is the same feedback twice.
    found.doubled = found.note("doubled", {i for i, count in Counter(ids).items() if count > 1})
    found.invented = found.note("invented", there - set(outcome_of))
    found.forgotten_left = found.note("forgotten_left", there & gone)
    return found


def _requests(db: sqlite3.Connection, lake: Path, task: str) -> Finding:
    """Each answered chat request was observed once, as answered."""
    chats = db.execute(
        "SELECT prediction_id, user IN (SELECT user FROM forgotten) FROM predictions "
        "WHERE way = 'chat' AND outcome = 'accepted'"
    ).fetchall()
    promised, gone = {i for i, _ in chats}, {i for i, forgotten in chats if forgotten}
    rows = read(lake, "requests", task, ["prediction_id", "event_id", "status"])
    if rows.num_rows:
        rows = rows.filter(pc.equal(rows["status"], 200))
    ids = rows.column("prediction_id").to_pylist()
    found = Finding(accepted=len(promised), forgotten=len(gone), stored=len(ids))
    found.lost = found.note("lost", promised - gone - set(ids))
    found.doubled = found.note("doubled", {i for i, count in Counter(ids).items() if count > 1})
    found.forgotten_left = found.note("forgotten_left", set(ids) & gone)
    return found
