"""Plots of a loop as inline SVG. matplotlib is imported only here, and only when a report is written."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from deploy.demo.pairs import PairCounts
from deploy.demo.report.measure import Measurement
from deploy.demo.report.result import LiveTest, LoopResult

_BEFORE, _AFTER, _LINE = "#9aa5b1", "#1f7a8c", "#bf4342"


def draw(
    result: LoopResult, history: Sequence[PairCounts], seconds: dict[str, float], canary_wealth: float
) -> dict[str, str]:
    """Return title → SVG, for the plots that this loop has data for."""
    plots: dict[str, str] = {}
    if result.before and result.after:
        plots["Accuracy on the held-out questions, 95 % intervals"] = _accuracy(result.before, result.after)
        plots["Accuracy per class"] = _classes(result.before, result.after)
        plots["Latency through the gateway"] = _latency(result.before, result.after)
    if history:
        plots["Wealth over the labels of pairs"] = _wealth(result.live_test, history, canary_wealth)
    if seconds:
        plots["Time of each step"] = _steps(seconds)
    return plots


def _figure(width: float = 6.4, height: float = 3.4) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _accuracy(before: Measurement, after: Measurement) -> str:
    figure, axes = _figure()
    for position, (measured, colour) in enumerate(((before, _BEFORE), (after, _AFTER))):
        a = measured.accuracy
        axes.bar(position, a.value, color=colour, width=0.55)
        axes.errorbar(position, a.value, yerr=[[a.value - a.low], [a.high - a.value]], color="black", capsize=6)
        axes.text(position + 0.06, a.value + 0.01, f"{a.value:.0%}", ha="left", va="bottom")
    axes.set_xticks([0, 1], [f"before, n = {before.accuracy.n}", f"after, n = {after.accuracy.n}"])
    axes.set_ylim(0, 1.05)
    return _svg(figure)


def _classes(before: Measurement, after: Measurement) -> str:
    labels = list(after.by_label)
    figure, axes = _figure(height=max(2.4, 0.36 * len(labels) + 0.8))
    for offset, (name, measured, colour) in enumerate((("before", before, _BEFORE), ("after", after, _AFTER))):
        counts = [measured.by_label.get(label, (0, 1)) for label in labels]
        shares = [correct / max(total, 1) for correct, total in counts]
        axes.barh([n + 0.2 - 0.4 * offset for n in range(len(labels))], shares, height=0.38, color=colour, label=name)
    axes.set_yticks(range(len(labels)), [label[:40] for label in labels])
    axes.set_xlim(0, 1)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2)
    return _svg(figure)


def _latency(before: Measurement, after: Measurement) -> str:
    figure, axes = _figure(height=2.4)
    for offset, (name, measured, colour) in enumerate((("before", before, _BEFORE), ("after", after, _AFTER))):
        values = (measured.latency_ms_p50, measured.latency_ms_p95)
        bars = axes.barh([1.2 - 0.4 * offset, 0.2 - 0.4 * offset], values, height=0.38, color=colour, label=name)
        axes.bar_label(bars, fmt="%.0f ms", padding=3)
    axes.set_yticks([1, 0], ["p50", "p95"])
    axes.margins(x=0.15)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)
    return _svg(figure)


def _wealth(live_test: LiveTest, history: Sequence[PairCounts], canary_wealth: float) -> str:
    figure, axes = _figure()
    axes.step([s.labels for s in history], [max(s.wealth, 1e-3) for s in history], where="post", color=_AFTER)
    axes.set_yscale("log")
    axes.set_xlabel("labels of discordant pairs")
    axes.set_ylabel("wealth")
    axes.axhline(canary_wealth, color=_BEFORE, linestyle=":")
    axes.text(0, canary_wealth * 1.1, f" canary at {canary_wealth:.0f}", color="#52606d", va="bottom")
    if live_test.changes:
        promotion_wealth = 1 / live_test.changes[-1]["evidence"]["alpha"]
        axes.axhline(promotion_wealth, color=_BEFORE, linestyle=":")
        axes.text(0, promotion_wealth * 1.1, f" everyone at {promotion_wealth:.0f}", color="#52606d", va="bottom")
    for stage, labels in live_test.labels_at_stage.items():
        axes.axvline(labels, color=_LINE, linewidth=1)
        axes.text(labels, 1.0, f" {stage}", color=_LINE, rotation=90, ha="right", va="bottom")
    return _svg(figure)


def _steps(seconds: dict[str, float]) -> str:
    figure, axes = _figure(height=0.3 * len(seconds) + 0.7)
    names = list(seconds)[::-1]
    bars = axes.barh(names, [seconds[name] for name in names], color=_AFTER)
    axes.bar_label(bars, fmt="%.0f s", padding=3)
    axes.margins(x=0.12)
    return _svg(figure)
