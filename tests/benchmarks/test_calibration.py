"""The measures of the confidence benchmark are right on answers with known values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.calibration import best_possible_lowest_tenth, draw, figures, perfect_ece

HONEST = np.repeat([0.2, 0.9], 100)
"""A hundred answers each, right as often as their score says."""
RIGHT = np.concatenate([np.arange(100) % 10 < 2, np.arange(100) % 10 < 9]).astype(float)


def test_honest_scores_have_no_error_but_the_scatter_of_a_bin() -> None:
    found = figures(HONEST, RIGHT)
    assert found.ece_width == pytest.approx(0.0, abs=1e-9)
    assert found.ece < 0.1


def test_overconfident_scores_have_their_distance_as_error() -> None:
    found = figures(np.full(200, 0.95), RIGHT)
    assert found.ece_width == pytest.approx(0.4)
    assert found.auroc == 0.5


def test_errors_are_counted_in_the_tenth_with_the_lowest_scores() -> None:
    right = np.ones(100)
    right[[3, 50, 51, 99]] = 0.0
    scores = np.linspace(0.5, 1.0, 100)
    assert figures(scores, right).lowest_tenth == 0.25
    assert figures(scores[::-1], right).lowest_tenth == 0.25
    assert figures(np.where(right > 0, 0.9, 0.1), right).lowest_tenth == 1.0


def test_a_tenth_of_the_answers_can_hold_only_so_many_errors() -> None:
    assert best_possible_lowest_tenth(RIGHT) == pytest.approx(20 / 90)
    assert best_possible_lowest_tenth(np.array([1.0] * 99 + [0.0])) == 1.0


def test_a_perfect_map_has_the_error_of_chance_alone() -> None:
    # Of n answers, the mean distance of a bin of m with probability p is about sqrt(2 / pi) * sqrt(p (1 - p) / m).
    expected = np.sqrt(2 / np.pi) * np.sqrt(0.8 * 0.2 / 100)
    assert perfect_ece(np.linspace(0.8 - 1e-6, 0.8 + 1e-6, 1_500), seed=1) == pytest.approx(expected, rel=0.03)
    assert perfect_ece(np.ones(1_500), seed=1) == 0.0


def test_the_diagram_is_drawn(tmp_path: Path) -> None:
    draw(HONEST, np.sqrt(HONEST), RIGHT, tmp_path / "plots" / "r.png")
    assert (tmp_path / "plots" / "r.png").read_bytes().startswith(b"\x89PNG")
