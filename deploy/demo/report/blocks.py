"""A loop as blocks: what it says first, what was measured before and after, and what each step made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.demo.pairs import PairLedger
from deploy.demo.report.measure import Measurement
from deploy.demo.report.result import LoopResult
from deploy.demo.reviewers import ReviewCounts
from schemas.base import Interval
from shared.report.blocks import Axis, Bars, Block, Cell, Link, Section, Share, Table, Text
from shared.report.dataset import inspection_blocks
from shared.report.evaluation import evaluated_blocks
from shared.report.learning import modes_table
from shared.report.rollout import moves_table, wealth_plot
from shared.report.written import number, written

INSPECTION_PAGE = "dataset.html"
"""Beside report.html: the page of the data set's inspection."""
EVALUATED_PAGE = "evaluation.html"
"""Beside report.html: the page of the evaluation."""
Rows = list[tuple[str, Cell, Cell]]


@dataclass(frozen=True)
class Report:
    """The content of a report. `seconds`: step → duration; `addresses`: name → where to look further."""

    result: LoopResult
    reviews: ReviewCounts
    pairs: PairLedger
    seconds: Mapping[str, float]
    addresses: Mapping[str, str]
    canary_wealth: float = 20.0


def loop_blocks(report: Report) -> list[Block]:
    """All of the page."""
    result, cycle = report.result, report.result.cycle
    inspected = (
        [Link("The whole inspection, with plots and examples", INSPECTION_PAGE)] if cycle.inspection_page else []
    )
    evaluated = [Link("The whole evaluation, with plots", EVALUATED_PAGE)] if cycle.evaluation_page else []
    sections: dict[str, Sequence[Block]] = {
        "Evaluation": [*evaluated, *(evaluated_blocks(cycle.evaluation) if cycle.evaluation else [])],
        "Failure modes": [modes_table(cycle.modes)] if cycle.modes else [],
        "Inspection of the data set": [*inspected, *(inspection_blocks(cycle.inspection) if cycle.inspection else [])],
        "Rollout": [moves_table(result.live_test.changes)] if result.live_test.changes else [],
        "Most frequent mistakes before": _mistakes(result.before),
        "Most frequent mistakes after": _mistakes(result.after),
        "Steps and addresses": [Table(("", "", ""), spent_rows(report)), *_time_bars(report)],
    }
    return [
        *finding_texts(result),
        *verdict_texts(result),
        Table(("", "before", "after"), measured_rows(report)),
        *_measured_bars(result.before, result.after),
        *_wealth_plots(report),
        *(Section(title, blocks) for title, blocks in sections.items() if blocks),
    ]


def finding_texts(result: LoopResult) -> list[Text]:
    """What the table of approaches says: the most important sentence first."""
    return [Text(finding) for finding in result.cycle.approaches.findings] if result.cycle.approaches else []


def verdict_texts(result: LoopResult) -> list[Text]:
    """How the loop ended; of labels with a fault on purpose, whether that was seen."""
    serves = f" {result.cycle.training['adapter']} serves everyone." if result.cycle.training else ""
    stopped = f"Not promoted: stopped by {result.stopped_by}. Evidence: {result.evidence}"
    verdict = Text(f"Promoted.{serves}", "good") if result.promoted else Text(stopped, "bad")
    if result.fault is None:
        return [verdict]
    gates = f"the gates that should name this fault are {', '.join(sorted(result.fault.gates))}."
    seen = "As expected" if result.as_expected else "Not as expected"
    fault = f"The labels had a fault on purpose ({result.fault.value.replace('_', ' ')}). {seen}: {gates}"
    return [verdict, Text(fault, "good" if result.as_expected else "bad")]


def measured_rows(report: Report) -> Rows:
    """What was measured on the held-out questions: name, before, after."""
    both = (report.result.before, report.result.after)
    rows: dict[str, list[Cell]] = {
        "accuracy": [None if m is None else _with_n(m.accuracy) for m in both],
        "score": [None if m is None else _with_n(m.text_score) for m in both],
        "field F1": [None if m is None or m.field_f1 is None else Share(m.field_f1) for m in both],
        "latency p50": [None if m is None else f"{m.latency_ms_p50:,.0f} ms" for m in both],
        "latency p95": [None if m is None else f"{m.latency_ms_p95:,.0f} ms" for m in both],
    }
    return [(name, before, after) for name, (before, after) in rows.items() if (before, after) != (None, None)]


def _with_n(found: Interval | None) -> str | None:
    return None if found is None else f"{written(found)}, n = {found.n}"


def spent_rows(report: Report) -> Rows:
    """What the loop took, and where to look further."""
    reviews, pairs = report.reviews, report.pairs.counts()
    purposes = ", ".join(f"{count} {purpose}" for purpose, count in reviews.by_purpose.items())
    rows = {
        "labels spent": f"{reviews.answers} ({purposes or 'none'})",
        "pairs": f"{pairs.pairs}: {pairs.ties} ties, {pairs.wins} wins, {pairs.losses} losses",
        "wealth": f"{pairs.wealth:,.1f}",
        **{f"step: {name}": f"{seconds:.1f} s" for name, seconds in report.seconds.items()},
        "total": f"{report.result.seconds:.0f} s",
        **report.addresses,
    }
    return [(name, "", value) for name, value in rows.items()]


def _measured_bars(before: Measurement | None, after: Measurement | None) -> list[Block]:
    if before is None or after is None:
        return []
    both, arms = (before, after), ("before", "after")
    counts = {label: [m.by_label.get(label, (0, 1)) for m in both] for label in after.by_label}
    classes = {label: [Share(right / max(n, 1)) for right, n in found] for label, found in counts.items()}
    latency = {"p50": [m.latency_ms_p50 for m in both], "p95": [m.latency_ms_p95 for m in both]}
    return [
        Bars(
            "Accuracy on the held-out questions, 95 % intervals",
            arms,
            {f"n = {after.accuracy.n}": [m.accuracy for m in both]},
        ),
        *([Bars("Accuracy per class", arms, classes)] if classes else []),
        Bars("Latency through the gateway, ms", arms, latency, max(map(max, latency.values())) or 1.0),
    ]


def _wealth_plots(report: Report) -> list[Block]:
    history, live = report.pairs.history, report.result.live_test
    if not history:
        return []
    last = max(counts.labels for counts in history)
    labels = Axis("labels of discordant pairs", 0, last, [(n, number(n)) for n in dict.fromkeys((0, last))])
    everyone = {"everyone": 1 / live.changes[-1]["evidence"]["alpha"]} if live.changes else {}
    moments = [(at, stage) for stage, at in live.labels_at_stage.items()]
    points = [(counts.labels, counts.wealth) for counts in history]
    return [wealth_plot(points, labels, {"canary": report.canary_wealth, **everyone}, moments)]


def _time_bars(report: Report) -> list[Block]:
    rows = {name: (round(seconds, 1),) for name, seconds in report.seconds.items()}
    return [Bars("Time of each step, s", ("seconds",), rows, max(report.seconds.values()) or 1.0)] if rows else []


def _mistakes(measured: Measurement | None) -> Sequence[Block]:
    found = measured.confusions if measured else ()
    return [Table(("right is", "answered", "times"), found)] if found else []
