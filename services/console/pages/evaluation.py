"""How a candidate compares with production, as a part of a cycle's page. Pure.

Each function takes an `adapters.evaluated`, and returns nothing of what an evaluation has not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from schemas.adapters import TextScore
from schemas.adversarial import AdversarialReport
from schemas.approaches import TITLES, Approach, ApproachTable
from schemas.judging import JudgeReport
from schemas.tasks import TaskKind
from services.console.pages.gates import gates_table
from services.console.pages.layout import Markup, link, muted, number, percent, table
from services.console.reports import evaluation_page
from shared.grading import adversarial_table, text_table
from shared.model.prices import money

Json = dict[str, Any]
_APPROACH_HEADS = (
    "Approach",
    "Accuracy (95 %)",
    "Rows",
    "Candidate gains, points (95 %)",
    "Cost a month",
    "p50",
    "p95",
)


def evaluation_parts(events: list[Json]) -> list[str]:
    """Return the parts of the card. `events`: the cycle's evaluations, of which the last one counts."""
    event = events[-1]
    gained, lost, total = (event[f"golden_{what}"] for what in ("gained", "lost", "total"))
    golden = f"Golden set: {gained} gained, {lost} lost, of {total}." if total else "No golden row was judged."
    return [
        _evaluation_link(event),
        *approach_parts(event),
        _side_by_side(event),
        muted(_gain(event)),
        muted(golden),
        *text_parts(event),
        gates_table(event["gates"]),
        *adversarial_parts(event),
    ]


_VALID = {TaskKind.TOOLS: "Calls that can be run", TaskKind.MULTI_LABEL: "Answers that are a list of labels"}


def _side_by_side(event: Json) -> str:
    """Both arms' scores in a table; what a kind of task does not have is left out."""
    arms, kind = (event["candidate"], event["production"]), event["spec"]["kind"]

    def row(name: str, value: Callable[[Json], str]) -> tuple[str, ...]:
        return (name, *(value(arm) for arm in arms))

    def interval(estimate: Json | None) -> str:
        if estimate is None:
            return ""
        bounds = f"{percent(estimate['low'])} to {percent(estimate['high'])}"
        return f"{percent(estimate['value'])}  ({bounds}, n = {estimate['n']})"

    def measured_row(name: str, field: str) -> tuple[str, ...]:
        return row(name, lambda arm: interval(arm.get(field)))

    measured = {
        "Subset accuracy: the whole set is right" if kind == TaskKind.MULTI_LABEL else "Accuracy": "accuracy",
        "Accuracy on all traffic, estimated": "traffic_accuracy",
        "Mean score": "score" if kind != TaskKind.CLASSIFICATION else "",
        "Right functions, whatever the arguments": "function_accuracy",
        _VALID.get(kind, "Answers by the schema"): "valid",
    }
    rows = [
        row("Adapter", lambda arm: arm["adapter"] or "base model"),
        *(measured_row(name, field) for name, field in measured.items() if any(arm.get(field) for arm in arms)),
        row("Failed requests", lambda arm: number(arm["failed"])),
        row("Latency, median", lambda arm: f"{number(arm['latency_ms_p50'], 0)} ms"),
        row("Latency, 95th percentile", lambda arm: f"{number(arm.get('latency_ms_p95'), 0)} ms"),
    ]
    if kind != TaskKind.GENERATION:
        rows.insert(-3, row("Macro F1", lambda arm: percent(arm["macro_f1"])))
    if any(_micro_f1(arm) is not None for arm in arms):
        rows.insert(-3, row("Micro F1", lambda arm: interval(_micro_f1(arm))))
    return table(("", "Candidate", "Production"), rows)


def _micro_f1(arm: Json) -> Json | None:
    """Of an arm whose answers have several labels."""
    return next((average["f1"] for average in arm.get("averages", ()) if average["kind"] == "micro"), None)


def _evaluation_link(event: Json) -> str:
    """The verdict in a sentence, and the page with everything behind it; an older evaluation has neither."""
    said = f"<p><b>{escape(event['headline'])}</b></p>" if event.get("headline") else ""
    if not event.get("report") or not event.get("cycle_id"):
        return said
    return f"{said}<p>{link(evaluation_page(event['cycle_id']), 'The whole evaluation, with plots')}</p>"


_FINDINGS = {"better": "The candidate is better", "worse": "The candidate is probably worse"}


def _gain(event: Json) -> str:
    """Say what the comparison shows. A candidate need not be shown to be better to go on."""
    if (gain := event.get("gain")) is None:
        return ""
    basis = "all traffic, estimated" if gain["basis"] == "traffic" else f"{gain['n']} rows, which are not all traffic"
    finding = _FINDINGS.get(gain["finding"], "No difference is shown")
    return f"{finding}: {percent(gain['value'])} ({percent(gain['low'])} to {percent(gain['high'])}; {basis})."


def approach_parts(event: Json) -> list[str]:
    """Return what the table of approaches says, then the table."""
    if (found := event.get("approaches")) is None:
        return []
    approaches = ApproachTable.model_validate(found)
    headline = event.get("headline") or ""  # It has the most important finding already.
    said = [Markup(f"<p>{escape(finding)}</p>") for finding in approaches.findings if finding not in headline]
    rows = [_approach_row(row, approaches.currency) for row in approaches.approaches]
    basis = "All had the same training set and were judged on the same held-out rows; prompts on a sample of them."
    if approaches.answers_per_month is not None:
        volume = number(approaches.answers_per_month, 0)
        basis += f" Costs of {volume} answers a month, by prices of {approaches.prices_of}."
    return [*said, table(_APPROACH_HEADS, rows), muted(basis)]


def _approach_row(row: Approach, currency: str) -> tuple[str, ...]:
    accuracy, gain = row.accuracy, row.candidate_gain
    return (
        TITLES[row.kind] + (f" ({row.adapter})" if row.adapter else ""),
        f"{percent(accuracy.value)} ({percent(accuracy.low)} to {percent(accuracy.high)})",
        f"{accuracy.n}" + (f", {row.failed} failed" if row.failed else ""),
        f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})" if gain else "–",
        "–" if row.cost_per_month is None else money(row.cost_per_month, currency),
        f"{number(row.latency_ms_p50)} ms",
        f"{number(row.latency_ms_p95)} ms",
    )


def text_parts(event: Json) -> list[str]:
    """Return both arms' generated texts by each metric, and what a judge says and whether it is certified."""
    parts: list[str] = []
    if scores := [TextScore.model_validate(score) for score in event.get("texts") or ()]:
        parts += [table(text_table.COLUMNS, text_table.text_rows(scores)), muted(text_table.NOTE)]
    if (found := event.get("judge")) is not None:
        judge = JudgeReport.model_validate(found)
        parts += [
            Markup(f"<p>{escape(text_table.judge_finding(judge))}</p>"),
            table(("The judge", ""), text_table.judge_rows(judge)),
        ]
    return parts


def adversarial_parts(event: Json) -> list[str]:
    """Return the table of the adversarial set, folded."""
    if (found := event.get("adversarial")) is None:
        return []
    report = AdversarialReport.model_validate(found)
    title = "Inputs that mislead: typos, casing, distractors, long, injections, foreign"
    rows = [(t.name, t.inputs, t.candidate, t.production) for t in report.techniques]
    techniques = (
        table(("Injections by technique", "Inputs", "Obeyed by candidate", "By production"), rows) if rows else ""
    )
    body = (
        table(adversarial_table.COLUMNS, adversarial_table.adversarial_rows(report))
        + muted(adversarial_table.NOTE)
        + techniques
    )
    return [
        Markup(f"<p>{escape(adversarial_table.adversarial_finding(report))}</p>"),
        f"<details><summary class='small muted'>{title}</summary>{body}</details>",
    ]
