"""Golden sets in the artifact store (schemas/golden.py): the scheduler publishes them, others read them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from schemas.golden import GOLDEN, GOLDEN_ROWS, GoldenManifest, GoldenRow, GoldenSet
from schemas.tasks import TaskSpec
from shared.errors import StepImpossible
from shared.identity import content_hash
from shared.storage.artifacts import MANIFEST, ArtifactNotFound, ArtifactStore


def golden_set(task: str, rows: Sequence[GoldenRow]) -> GoldenSet | None:
    """Return the name of the set of these rows, in any order; None for no rows."""
    if not rows:
        return None
    return GoldenSet(set_id=_set_id(task, _lines(rows)), rows=len(rows), must_pass=sum(row.must_pass for row in rows))


def publish_golden_set(store: ArtifactStore, task: str, rows: Sequence[GoldenRow]) -> str:
    """Publish the set of these rows; returns its address. Idempotent. Raises DependencyUnavailable, or OSError."""
    lines = _lines(rows)
    manifest = GoldenManifest(
        set_id=_set_id(task, lines),
        rows=len(rows),
        must_pass=sum(row.must_pass for row in rows),
        task=task,
        parts=dict(Counter(row.part for row in sorted(rows, key=lambda row: row.part))),
        files={GOLDEN_ROWS: hashlib.sha256(lines).hexdigest()},
    )
    files = {GOLDEN_ROWS: lines, MANIFEST: manifest.model_dump_json(indent=2).encode()}
    return store.publish_files(files, GOLDEN, manifest.set_id)


def read_golden_set(store: ArtifactStore, spec: TaskSpec) -> tuple[GoldenRow, ...]:
    """Return the rows of the task's golden set, sorted by id; none for a task without one.

    Raises StepImpossible for a set that is not in the store or is not what it was published as, DependencyUnavailable
    while the store is away.
    """
    if spec.golden_set is None:
        return ()
    set_id = spec.golden_set.set_id
    address = store.address(GOLDEN, set_id)
    try:
        lines = (store.fetch(address) / GOLDEN_ROWS).read_bytes()
        if _set_id(spec.name, lines) != set_id:
            raise ValueError("its rows are not those that were published")
        return tuple(GoldenRow.model_validate_json(line) for line in lines.splitlines())
    except ArtifactNotFound as error:  # It is published before the event that names it, so it was deleted.
        way_out = "Is RATCHET_ARTIFACTS the same everywhere? A restarted scheduler publishes the golden sets again."
        raise StepImpossible(f"the golden set {set_id} is not in the artifact store, at {address}", way_out) from error
    except (ValueError, OSError) as error:
        way_out = "Delete that folder and restart the scheduler, which publishes the golden set again."
        raise StepImpossible(f"the golden set at {address} cannot be read: {error}", way_out) from error


def _lines(rows: Sequence[GoldenRow]) -> bytes:
    ordered = sorted(rows, key=lambda row: row.row_id)
    return b"".join(row.model_dump_json(exclude_defaults=True).encode() + b"\n" for row in ordered)


def _set_id(task: str, lines: bytes) -> str:
    return f"{task}-{content_hash(task, lines)}"
