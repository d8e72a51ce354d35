"""The report of a loop: the table in the terminal, `report.json` for programs, `report.html` for people."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from deploy.demo.pairs import PairLedger
from deploy.demo.report.measure import Measurement
from deploy.demo.report.plots import draw
from deploy.demo.report.result import LoopResult
from deploy.demo.reviewers import ReviewCounts
from deploy.demo.terminal import Terminal
from schemas.base import Interval
from shared.errors import ConfigurationError
from shared.report.evaluation import evaluated_blocks
from shared.report.html import STYLE, fragment

INSPECTION_PAGE = "dataset.html"
"""Beside report.html: the page of the data set's inspection."""
EVALUATED_PAGE = "evaluation.html"
"""Beside report.html: the page of the evaluation."""


@dataclass(frozen=True)
class Report:
    """The content of a report. `seconds`: step → duration; `addresses`: name → where to look further."""

    result: LoopResult
    reviews: ReviewCounts
    pairs: PairLedger
    seconds: Mapping[str, float]
    addresses: Mapping[str, str]
    canary_wealth: float = 20.0


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
        "adversarial": cycle.adversarial.model_dump(mode="json") if cycle.adversarial else None,
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
    data = as_json(report)
    make_folder(folder)
    if (inspection := report.result.cycle.inspection_page) is not None:
        shutil.copyfile(inspection, folder / INSPECTION_PAGE)
    if (evaluation := report.result.cycle.evaluation_page) is not None:
        shutil.copyfile(evaluation, folder / EVALUATED_PAGE)
    (folder / "report.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    approaches = report.result.cycle.approaches
    page = environment.get_template("report.html.j2").render(
        data=data,
        result=report.result,
        inspection_page=INSPECTION_PAGE if inspection else None,
        evaluation_page=EVALUATED_PAGE if evaluation else None,
        rows=summary(report),
        findings=approaches.findings if approaches else (),
        evaluation=fragment(evaluated_blocks(evaluated)) if (evaluated := report.result.cycle.evaluation) else "",
        style=STYLE,
        plots=draw(report.result, report.pairs.history, dict(report.seconds), report.canary_wealth),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def summary(report: Report) -> list[tuple[str, str, str]]:
    """Return the rows of the summary: name, before, after."""
    before, after, pairs = report.result.before, report.result.after, report.pairs.counts()
    rows = [
        ("accuracy", _share(before.accuracy if before else None), _share(after.accuracy if after else None)),
        *_field_rows(before, after),
        ("latency p50", _ms(before, "latency_ms_p50"), _ms(after, "latency_ms_p50")),
        ("latency p95", _ms(before, "latency_ms_p95"), _ms(after, "latency_ms_p95")),
    ]
    purposes = ", ".join(f"{count} {purpose}" for purpose, count in report.reviews.by_purpose.items())
    rows += [
        ("labels spent", "", f"{report.reviews.answers} ({purposes or 'none'})"),
        ("pairs", "", f"{pairs.pairs}: {pairs.ties} ties, {pairs.wins} wins, {pairs.losses} losses"),
        ("wealth", "", f"{pairs.wealth:,.1f}"),
    ]
    rows += [(f"step: {name}", "", f"{seconds:.1f} s") for name, seconds in report.seconds.items()]
    rows.append(("total", "", f"{report.result.seconds:.0f} s"))
    rows += [(name, "", address) for name, address in report.addresses.items()]
    return rows


def _field_rows(before: Measurement | None, after: Measurement | None) -> list[tuple[str, str, str]]:
    """How much is right where accuracy is that of whole objects, or of equal texts: field F1, or the text's score."""
    scores = [_score(m) for m in (before, after)]
    if scores != ["–", "–"]:
        return [("score", scores[0], scores[1])]
    shown = ["–" if m is None or m.field_f1 is None else f"{m.field_f1:.1%}" for m in (before, after)]
    return [] if shown == ["–", "–"] else [("field F1", shown[0], shown[1])]


def show(report: Report, terminal: Terminal, folder: Path) -> None:
    """Print the summary, the verdict and where the report is."""
    result = report.result
    for finding in result.cycle.approaches.findings if result.cycle.approaches else ():
        terminal.say(finding)
    terminal.table("The whole loop", ("", "before", "after"), summary(report))
    if result.promoted:
        terminal.say(("Promoted", "bold green"))
    else:
        reason = f": stopped by {result.stopped_by}. Evidence: {result.evidence}"
        terminal.say(("Not promoted", "bold yellow"), reason)
    if result.fault is not None:
        seen = ("As expected", "bold green") if result.as_expected else ("Not as expected", "bold red")
        terminal.say(seen, f": the gates that should name this fault are {', '.join(sorted(result.fault.gates))}")
    terminal.say(f"{folder / 'report.html'} · {folder / 'report.json'}")


def _share(a: Interval | None) -> str:
    return f"{a.value:.1%} ({a.low:.1%}–{a.high:.1%}, n = {a.n})" if a else "–"


def _score(measured: Measurement | None) -> str:
    score = None if measured is None else measured.text_score
    return f"{score.value:.3f} ({score.low:.3f}–{score.high:.3f}, n = {score.n})" if score else "–"


def _dumped(measured: Measurement | None) -> dict[str, Any] | None:
    return None if measured is None or measured.text_score is None else measured.text_score.model_dump()


def _ms(measured: Measurement | None, name: str) -> str:
    return f"{getattr(measured, name):,.0f} ms" if measured else "–"
