"""The power curve: how many labels and pairs a promotion takes, by how much better the candidate is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from services.deployer.statistics.forecast import proof_distribution
from tests.benchmarks.promotion.walk import LEVEL, quantile_labels, quantile_pairs

DISCORDANCE = (0.03, 0.06, 0.12, 0.24)
EFFECTS = np.arange(0.005, 0.0501, 0.0025)
_HORIZON = 3_000


def medians(effect: float, discordance: float) -> tuple[float, float] | None:
    """Return the median labels and pairs to the proof at `LEVEL`; None: there is no such effect, or no such proof."""
    if effect > discordance:
        return None
    hits = proof_distribution((discordance + effect) / (2 * discordance), LEVEL, _HORIZON)
    labels = quantile_labels(hits)
    return None if np.isinf(labels) else (labels, quantile_pairs(hits, discordance))


def draw(path: Path) -> None:
    """Draw the medians of labels, and of pairs, over the effect, one line for each discordance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    grid: Any = figure.subplots(1, 2)
    for discordance, color in zip(DISCORDANCE, ("#1f7a8c", "#bf4342", "#e1a730", "#5b6c5d"), strict=True):
        found = [(100 * effect, *both) for effect in EFFECTS if (both := medians(float(effect), discordance))]
        for axis, column in ((grid[0], 1), (grid[1], 2)):
            label = f"{discordance:.0%} of pairs differ"
            axis.plot([row[0] for row in found], [row[column] for row in found], color=color, marker=".", label=label)
    for axis, what in ((grid[0], "decisive labels"), (grid[1], "pairs")):
        axis.set_yscale("log")
        axis.set_xlabel("points better than production")
        axis.set_title(f"median {what} to promotion at α = {LEVEL:.5f}", fontsize=10)
        axis.grid(alpha=0.3, which="both")
    grid[0].axhline(300, color="#9aa5b1", linestyle="--", linewidth=1)
    grid[0].text(5, 290, "the default of max_labels", ha="right", va="top", fontsize=8, color="#6b7682")
    grid[1].legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
