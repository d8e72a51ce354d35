"""The table of approaches as texts: approach, accuracy, cost and latency, for the terminal and the page. Pure."""

from __future__ import annotations

from schemas.approaches import TITLES, Approach, ApproachTable
from shared.model.prices import money

COLUMNS = ("approach", "accuracy (95 %)", "n", "candidate gains (95 %)", "cost a month", "p50", "p95")


def approach_rows(table: ApproachTable) -> list[tuple[str, ...]]:
    """Return a row of texts for each approach, in the order of `COLUMNS`."""
    return [_row(row, table.currency) for row in table.approaches]


def basis(table: ApproachTable) -> str:
    """Return what the costs are reckoned by, and what accuracy is where answers are neither right nor wrong."""
    scored = "" if table.metric is None else f" Accuracy is the mean score by {table.metric}."
    if table.answers_per_month is None:
        return f"No costs: the lake has no answer of this task yet.{scored}"
    return f"Costs of {table.answers_per_month:,.0f} answers a month, by prices of {table.prices_of}.{scored}"


def _row(row: Approach, currency: str) -> tuple[str, ...]:
    accuracy, gain = row.accuracy, row.candidate_gain
    name = TITLES[row.kind] + (f" ({row.adapter})" if row.adapter else "")
    return (
        name,
        f"{accuracy.value:.1%} ({accuracy.low:.1%}–{accuracy.high:.1%})",
        f"{accuracy.n}" + (f", {row.failed} failed" if row.failed else ""),
        f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})" if gain else "–",
        "–" if row.cost_per_month is None else money(row.cost_per_month, currency),
        _milliseconds(row.latency_ms_p50),
        _milliseconds(row.latency_ms_p95),
    )


def _milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10.0 else f"{value:.1f} ms"
