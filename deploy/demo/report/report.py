"""The report of a loop: the table in the terminal, `report.json` for programs, `report.html` for people."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from deploy.demo.report.blocks import (
    EVALUATED_PAGE,
    INSPECTION_PAGE,
    Report,
    finding_texts,
    loop_blocks,
    measured_rows,
    spent_rows,
    verdict_texts,
)
from deploy.demo.report.measure import Measurement
from deploy.demo.terminal import Terminal
from shared.errors import ConfigurationError
from shared.report.blocks import Table
from shared.report.html import page


def as_json(report: Report) -> dict[str, Any]:
    """Return the content of `report.json`. The first eight keys are a contract; the rest may change."""
    result, pairs = report.result, report.pairs.counts()
    cycle, live_test = result.cycle, result.live_test
    return {
        "promoted": result.promoted,
        "accuracy_before": result.before.accuracy.model_dump() if result.before else None,
        "accuracy_after": result.after.accuracy.model_dump() if result.after else None,
        "field_f1_before": result.before.field_f1 if result.before else None,
        "field_f1_after": result.after.field_f1 if result.after else None,
        "labels_spent": report.reviews.answers,
        "pairs": pairs.pairs,
        "seconds": round(result.seconds, 1),
        "steps": [{"name": name, "seconds": round(seconds, 1)} for name, seconds in report.seconds.items()],
        "task": result.task,
        "text_score_before": _dumped(result.before),
        "text_score_after": _dumped(result.after),
        "fault": result.fault,
        "as_expected": result.as_expected,
        "stopped_by": result.stopped_by or None,
        "evidence": result.evidence or None,
        "latency_ms": {
            when: {"p50": round(measured.latency_ms_p50, 1), "p95": round(measured.latency_ms_p95, 1)}
            for when, measured in (("before", result.before), ("after", result.after))
            if measured
        },
        "served_after": result.after.variants if result.after else {},
        "labels_by_purpose": dict(report.reviews.by_purpose),
        "wrong_on_purpose": report.reviews.wrong,
        "disagreed_on_purpose": report.reviews.disagreed,
        "pair_outcomes": {name: getattr(pairs, name) for name in ("wins", "losses", "ties", "pending", "wealth")},
        "rollouts": [
            {key: event[key] for key in ("stage", "reason", "evidence", "candidate_adapter")}
            for event in live_test.changes
        ],
        "canary_answers": live_test.canary_answers,
        "failure_modes": [{"name": mode["name"], "size": mode["size"]} for mode in cycle.modes],
        "inspection": cycle.inspection.model_dump(mode="json", include={"checks", "left_out"})
        if cycle.inspection
        else None,
        "approaches": cycle.approaches.model_dump(mode="json") if cycle.approaches else None,
        "adversarial": cycle.evaluation.get("adversarial") if cycle.evaluation else None,
        "gates": cycle.evaluation["gates"] if cycle.evaluation else [],
        "cycle_id": cycle.cycle_id,
        "addresses": dict(report.addresses),
    }


def make_folder(folder: Path) -> None:
    """Make the report's folder, if missing. Raises ConfigurationError if no report can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigurationError(
            f"no report can be written into {folder}: {error.strerror}", "Name another folder with --report."
        ) from error


def write(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.html` into `folder`, beside them the pages of inspection and evaluation."""
    data, cycle = as_json(report), report.result.cycle
    make_folder(folder)
    pages = {INSPECTION_PAGE: cycle.inspection_page, EVALUATED_PAGE: cycle.evaluation_page}
    for name, published in pages.items():
        if published is not None:
            shutil.copyfile(published, folder / name)
    (folder / "report.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page(f"Loop of {report.result.task}", loop_blocks(report)), encoding="utf-8")


def show(report: Report, terminal: Terminal, folder: Path) -> None:
    """Print the summary, the verdict and where the report is."""
    rows = [*measured_rows(report), *spent_rows(report)]
    table = Table(("", "before", "after"), rows, "The whole loop")
    terminal.show(*finding_texts(report.result), table, *verdict_texts(report.result))
    terminal.say(f"{folder / 'report.html'} · {folder / 'report.json'}")


def _dumped(measured: Measurement | None) -> dict[str, Any] | None:
    return None if measured is None or measured.text_score is None else measured.text_score.model_dump()
