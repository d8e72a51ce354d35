"""The adapter beside cheap rivals, as a part of a cycle's page. Pure."""

from __future__ import annotations

from html import escape
from typing import Any

from schemas.approaches import TITLES, Approach, ApproachTable
from services.console.pages.layout import Markup, muted, number, percent, table
from shared.model.prices import money

_HEADS = ("Approach", "Accuracy (95 %)", "Rows", "Candidate gains, points (95 %)", "Cost a month", "p50", "p95")


def approach_parts(event: dict[str, Any]) -> list[str]:
    """Return what the table of approaches says, then the table; nothing where an evaluation has none.

    `event`: an `adapters.evaluated`.
    """
    if (found := event.get("approaches")) is None:
        return []
    approaches = ApproachTable.model_validate(found)
    headline = event.get("headline") or ""  # It has the most important finding already.
    said = [Markup(f"<p>{escape(finding)}</p>") for finding in approaches.findings if finding not in headline]
    rows = [_row(row, approaches.currency) for row in approaches.approaches]
    basis = "All had the same training set and were judged on the same held-out rows; prompts on a sample of them."
    if approaches.answers_per_month is not None:
        volume = number(approaches.answers_per_month, 0)
        basis += f" Costs of {volume} answers a month, by prices of {approaches.prices_of}."
    return [*said, table(_HEADS, rows), muted(basis)]


def _row(row: Approach, currency: str) -> tuple[str, ...]:
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
