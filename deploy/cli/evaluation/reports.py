"""Finds evaluations in the artifact store by name, adapter or task. Reads what is published, and no service."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from schemas.datasets import Example
from schemas.evaluation import EVALUATION_FILE, EVALUATION_PAGE, EVALUATIONS, EvaluationManifest, EvaluationReport
from shared.errors import DependencyUnavailable, RatchetError
from shared.storage.artifacts import MANIFEST, ArtifactStore

_SHOWN = 8


class UnknownEvaluation(RatchetError):
    """No evaluation of this name, adapter or task is in the store, or it cannot be read."""


def evaluations_of(store: ArtifactStore, task: str) -> list[EvaluationReport]:
    """Return a task's evaluations, oldest first. Raises UnknownEvaluation if there is none."""
    found = [manifest for manifest in _manifests(store) if manifest.task == task]
    if not found:
        raise _unknown(store, task, {manifest.task for manifest in _manifests(store)})
    found.sort(key=lambda manifest: (manifest.created_at, manifest.evaluation))
    return [_read(store, manifest.evaluation) for manifest in found]


def find_report(store: ArtifactStore, name: str) -> EvaluationReport:
    """Return the evaluation of this name, or the newest of an adapter or a task of this name."""
    manifests = list(_manifests(store))
    matching = [m for m in manifests if name in (m.evaluation, m.adapter, m.task)]
    if not matching:
        raise _unknown(store, name, {known for m in manifests for known in (m.evaluation, m.adapter, m.task)})
    newest = max(matching, key=lambda manifest: (manifest.created_at, manifest.evaluation))
    return _read(store, newest.evaluation)


def page_of(store: ArtifactStore, report: EvaluationReport) -> Path:
    """Return the page as a file of this machine. Raises DependencyUnavailable."""
    return store.fetch(store.address(EVALUATIONS, report.evaluation)) / EVALUATION_PAGE


def rows_named(store: ArtifactStore, report: EvaluationReport, names: Collection[str]) -> dict[str, Example]:
    """Return the held-out rows of these names that are still there: who asked may have been forgotten since."""
    wanted = set(names)
    found = {}
    try:
        for line in store.lines("datasets", report.dataset_id, "eval.jsonl"):
            if line.strip() and (row := Example.model_validate_json(line)).example_id in wanted:
                found[row.example_id] = row
    except (OSError, DependencyUnavailable, ValidationError):
        return {}
    return found


def _manifests(store: ArtifactStore) -> Iterator[EvaluationManifest]:
    """Yield the manifest of each complete folder."""
    for name in store.names(EVALUATIONS):
        try:
            yield EvaluationManifest.model_validate_json(b"".join(store.lines(EVALUATIONS, name, MANIFEST)))
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            continue


def _read(store: ArtifactStore, name: str) -> EvaluationReport:
    try:
        return EvaluationReport.model_validate_json(b"".join(store.lines(EVALUATIONS, name, EVALUATION_FILE)))
    except (OSError, ValidationError) as error:
        raise UnknownEvaluation(
            f"the evaluation {name} cannot be read", "Another version of Ratchet wrote it, or it is incomplete."
        ) from error


def _unknown(store: ArtifactStore, name: str, known: Collection[str]) -> UnknownEvaluation:
    near = get_close_matches(name, sorted(known), n=_SHOWN, cutoff=0.4) or sorted(known)[:_SHOWN]
    way_out = f"There are: {', '.join(near)}" if near else "There is none yet. A cycle makes one: ratchet cycle TASK"
    return UnknownEvaluation(f"no evaluation of {name!r} in {store.address(EVALUATIONS, '')}", way_out)
