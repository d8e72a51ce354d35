"""Finds evaluations in the artifact store by name, adapter or task. Reads what is published, and no service."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from schemas.datasets import Example
from schemas.evaluation import EVALUATION_FILE, EVALUATION_PAGE, EVALUATIONS, EvaluationReport
from shared.errors import DependencyUnavailable, RatchetError
from shared.storage.artifacts import ArtifactStore

_SHOWN = 8


class UnknownEvaluation(RatchetError):
    """No evaluation of this name, adapter or task that can be read is in the store."""


def evaluations_of(store: ArtifactStore, task: str) -> list[EvaluationReport]:
    """Return a task's evaluations, oldest first. Raises UnknownEvaluation if there is none."""
    return _matching(store, task, lambda report: {report.task})


def find_report(store: ArtifactStore, name: str) -> EvaluationReport:
    """Return the evaluation of this name, or the newest of an adapter or a task of this name."""
    return _matching(store, name, lambda report: {report.evaluation, report.adapter, report.task})[-1]


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


def _matching(
    store: ArtifactStore, name: str, names_of: Callable[[EvaluationReport], set[str]]
) -> list[EvaluationReport]:
    """Return those of the complete reports that have the name, oldest first. Raises UnknownEvaluation."""
    reports = []
    for folder in store.names(EVALUATIONS):
        with suppress(FileNotFoundError, NotADirectoryError, ValidationError):
            content = b"".join(store.lines(EVALUATIONS, folder, EVALUATION_FILE))
            reports.append(EvaluationReport.model_validate_json(content))
    if found := [report for report in reports if name in names_of(report)]:
        return sorted(found, key=lambda report: (report.created_at, report.evaluation))
    known = sorted(set[str]().union(*map(names_of, reports)))
    near = get_close_matches(name, known, n=_SHOWN, cutoff=0.4) or known[:_SHOWN]
    way_out = f"There are: {', '.join(near)}" if near else "There is none yet. A cycle makes one: ratchet cycle TASK"
    raise UnknownEvaluation(f"no evaluation of {name!r} in {store.address(EVALUATIONS, '')}", way_out)
