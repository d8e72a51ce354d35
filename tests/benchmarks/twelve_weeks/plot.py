"""The picture of a run: accuracy by week, promotions, and where the bad candidates were stopped."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.twelve_weeks.play import Played

_MARKS = "abcd"


def plot(played: Played, path: Path) -> None:
    """Write a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    axes = figure.subplots()
    weeks = [week.week for week in played.weeks]
    first = [(week.week, week.first) for week in played.weeks if week.first is not None]
    axes.plot(weeks, [w.refit for w in played.weeks], color="#999999", linestyle=":", label="an oracle's refit")
    axes.plot(weeks, [w.served for w in played.weeks], color="#1a6fb5", linewidth=2.4, label="what users were answered")
    axes.plot(*zip(*first, strict=True), color="#d98c1f", label="the first promoted adapter, had it stayed")
    axes.plot(weeks, [w.base for w in played.weeks], color="#555555", linestyle="--", label="the base model")
    for number, promotion in enumerate(played.promotions):
        label = "promotion" if number == 0 else None
        height = played.weeks[promotion.week].served
        axes.plot(promotion.week, height, "^", color="#1a6fb5", markersize=10, label=label)
    bad = [c for c in played.candidates if c.fault is not None and c.end is not None and not c.was_replaced]
    low, high = axes.get_ylim()
    for number, candidate in enumerate(bad):
        axes.plot(candidate.ended, low, "x", color="#b3261e", markersize=10, markeredgewidth=2.5, clip_on=False)
        axes.annotate(
            _MARKS[number % len(_MARKS)], (candidate.ended, low), textcoords="offset points", xytext=(7, 6),
            color="#b3261e",
        )  # fmt: skip
        axes.plot([], [], "x", color="#b3261e", label=f"{_MARKS[number % len(_MARKS)]}: stopped, {candidate.fault}")
    axes.set_ylim(low, high)
    axes.set(xlabel="week", ylabel="accuracy on the week's stream, by the truth", xticks=weeks)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
