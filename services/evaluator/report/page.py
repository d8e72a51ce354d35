"""Renders a report as evaluation.html: one file that loads nothing, with its plots drawn by the templates as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import get_args

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from schemas.adapters import ClassScore
from schemas.approaches import TITLES
from schemas.base import CheckResult, Interval
from schemas.evaluation import EvaluationReport, PartKind
from schemas.tasks import TaskKind
from services.evaluator.report import charts
from shared.grading import adversarial_table, text_table
from shared.model.prices import money

KINDS: dict[PartKind, str] = {
    "class": "Classes", "field": "Fields", "failure_mode": "Failure modes", "app": "Applications",
    "language": "Languages", "length": "Lengths", "function": "Functions", "argument": "Arguments", "label": "Labels",
}  # fmt: skip
_CLASSES = {
    TaskKind.CLASSIFICATION: "label", TaskKind.MULTI_LABEL: "label", TaskKind.EXTRACTION: "field",
    TaskKind.TOOLS: "function",
}  # fmt: skip
_VALID = {TaskKind.TOOLS: "Calls that can be run", TaskKind.MULTI_LABEL: "Answers that are a list of labels"}
_MAX_CONFUSED = 15


def render(report: EvaluationReport) -> str:
    """Return the page. Every text of the report is escaped."""
    arms = (report.candidate, report.production)
    curve = report.approaches.curve
    wrong = [found for found in report.candidate.confusions if found.expected != found.given]
    highest = charts.highest_risk(arms)
    line, examples = charts.examples_line(curve) if curve else (None, ())
    return _template().render(
        report=report,
        gates=sorted(report.gates, key=lambda gate: _ORDER.index(gate.result)),
        titles=TITLES,
        charts=charts,
        matrices=[charts.matrix(arm) for arm in arms],
        confused=wrong[:_MAX_CONFUSED],
        confused_more=len(wrong) - _MAX_CONFUSED,
        before=charts.reliability(report.reliability.before if report.reliability else ()),
        after=charts.reliability(report.reliability.after if report.reliability else ()),
        risk=[charts.risk_line(arm, highest) for arm in arms],
        highest_risk=highest,
        misled_finding=adversarial_table.adversarial_finding(report.adversarial) if report.adversarial else "",
        misled_columns=adversarial_table.COLUMNS,
        misled_rows=adversarial_table.adversarial_rows(report.adversarial) if report.adversarial else (),
        misled_note=adversarial_table.NOTE,
        text_columns=text_table.COLUMNS,
        text_rows=text_table.text_rows(report.texts),
        text_note=text_table.NOTE,
        judge_finding=text_table.judge_finding(report.judge) if report.judge else "",
        judge_rows=text_table.judge_rows(report.judge) if report.judge else (),
        valid_title=_VALID.get(report.kind, "Answers by the schema"),
        scores=list(_score_tables(report)),
        curve=line,
        curve_ticks=examples,
        parts=[(KINDS[kind], rows) for kind in get_args(PartKind) if (rows := charts.part_rows(report.parts, kind))],
    )


def _score_tables(report: EvaluationReport) -> Iterator[tuple[str, Sequence[ClassScore], dict[str, Interval | None]]]:
    """Yield a table's title, the candidate's scores and production's F1 by label, of what the arms have."""
    ours, theirs = report.candidate, report.production
    if ours.classes:
        title = f"Precision, recall and F1 of each {_CLASSES[report.kind]}"
        yield title, ours.classes, {score.label: score.f1_interval for score in theirs.classes}
    if ours.arguments:
        title = "Precision, recall and F1 of each function's arguments"
        yield title, ours.arguments, {score.label: score.f1_interval for score in theirs.arguments}


_ORDER = [CheckResult.FAILED, CheckResult.UNKNOWN, CheckResult.PASSED]


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("services.evaluator.report", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["words"] = lambda name: name.replace("_", " ")
    environment.filters["number"] = _number
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.1%}"
    environment.filters["interval"] = _interval
    environment.filters["decimals"] = lambda found: (
        "–" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
    )
    environment.filters["points"] = lambda gain: (
        "–" if gain is None else f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    )
    environment.filters["money"] = lambda amount, currency: "–" if amount is None else money(amount, currency)
    return environment.get_template("evaluation.html.j2")


def _interval(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def _number(value: float | None, digits: int = 4) -> str:
    """Return a number with separators and at most so many significant digits; – for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1_000 else f"{value:.{digits}g}"
