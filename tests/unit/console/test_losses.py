"""The losses of a training are kept within a bound, and drawn over its steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from schemas.cycles import StepProgressed
from services.console.history import MAX_LOSSES, Losses, with_loss
from services.console.pages.cycle import sections
from services.console.pages.losses import loss_plot, loss_plots

STEPS = 5_000
Report = tuple[float, float | None, float | None]


def curve(*reports: Report) -> list[Losses]:
    return [Losses(STEPS, *report) for report in reports]


def kept(reports: Sequence[Report]) -> list[Losses]:
    losses: list[Losses] = []
    for step, loss, held_out in reports:
        event = StepProgressed(
            task="t", task_revision="r1", cycle_id="t-1", step="training", done=step, total=STEPS, loss=loss,
            validation_loss=held_out,
        )  # fmt: skip
        losses = with_loss(losses, event)
    return losses


def test_a_validation_loss_is_kept_at_the_step_that_reported_it_first() -> None:
    reports = [(1, 2.0, None), (2, 1.0, 1.5), (3, 0.9, 1.5), (4, 0.8, 1.2)]
    assert kept(reports) == curve((1, 2.0, None), (2, 1.0, 1.5), (3, 0.9, None), (4, 0.8, 1.2))


def test_a_report_without_a_loss_is_no_point() -> None:
    assert kept([(0, None, None), (1, 2.0, None), (0, None, None)]) == curve((1, 2.0, None))


def test_a_validation_that_is_reported_after_its_step_joins_it_and_one_without_a_loss_is_kept() -> None:
    assert kept([(1, 2.0, None), (2, 1.0, None), (2, None, 1.5)]) == curve((1, 2.0, None), (2, 1.0, 1.5))
    assert kept([(1, None, 0.5), (2, None, 0.4)]) == curve((1, None, 0.5), (2, None, 0.4)), "as merging adapters does"


def test_a_second_stage_has_a_plot_of_its_own() -> None:
    event = StepProgressed(
        task="t", task_revision="r1", cycle_id="t-1", step="training", done=1, total=9, loss=0.7
    )  # fmt: skip
    losses = with_loss(CURVE, event)
    assert losses == [Losses(9, 1, 0.7, None), *CURVE]
    assert len(loss_plots(losses)) == 2


def test_a_resumed_training_repeats_steps_and_loses_no_point() -> None:
    reports: list[Report] = [(1, 2.0, None), (2, 1.0, 1.5), (3, 0.9, 1.5)]
    assert kept([*reports, (2, 1.0, None), (3, 0.9, None)]) == kept(reports)
    assert kept([(1, 2.0, 1.5), (1, 2.0, None)]) == curve((1, 2.0, 1.5))


def test_losses_are_thinned_evenly_and_every_validation_loss_stays() -> None:
    losses = kept([(step, 10 / (step + 1), float(step // 100) or None) for step in range(STEPS)])
    assert len(losses) == MAX_LOSSES
    steps = [losses.step for losses in losses]
    assert (steps[0], steps[-1]) == (0, 4_999)
    assert max(after - before for before, after in pairwise(steps)) <= 60
    assert [losses.validation for losses in losses if losses.validation] == [float(n) for n in range(1, 50)]


def points(plot: str, kind: str = "") -> list[tuple[float, float]]:
    (line,) = re.findall(rf'<polyline{kind} points="([^"]+)"', plot)
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]


CURVE = curve((1, 4.0, None), (2, 2.0, 3.0), (3, 1.0, None), (5, 1.0, 1.5))


def test_the_plot_shows_both_losses_over_the_steps() -> None:
    plot = loss_plot(CURVE)
    (x1, top), (x2, middle), (_, low), (x5, last) = points(plot)
    (v2, high), (v5, _) = points(plot, ' class="held-out"')
    assert (v2, v5) == (x2, x5), "both are over the same steps"
    assert (x2 - x1) / (x5 - x1) == pytest.approx(1 / 4, abs=0.01)
    assert top < high < middle < low == last < 200, "the lower a loss, the lower it is drawn"
    assert (low - top) / (low - middle) == pytest.approx(3, abs=0.01)


def test_the_plot_says_its_numbers_in_words_and_at_the_ends_of_its_curves() -> None:
    plot = loss_plot(CURVE)
    (label,) = re.findall(r'role="img" aria-label="([^"]+)"', plot)
    assert "loss 1 at step 5" in label and "validation 1.500 at step 5" in label
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", plot)
    assert {"loss 1", "validation 1.500", "step 1", "step 5", "4", "0"} == set(texts)


def test_names_at_the_ends_do_not_cover_each_other() -> None:
    plot = loss_plot(curve((1, 2.0, 2.0), (2, 1.0, 1.001)))
    upper, lower = (float(y) for y in re.findall(r'y="([\d.]+)">(?:loss|validation)', plot))
    assert lower - upper >= 12


@pytest.mark.parametrize("report", [(1, 0.0, None), (3, 2.0, 2.0)])
def test_a_single_step_is_drawn(report: Report) -> None:
    plot = loss_plot(curve(report))
    assert "nan" not in plot and len(points(plot)) == 1


def test_the_card_of_a_training_has_the_plot_while_it_runs() -> None:
    records: list[dict[str, Any]] = []
    ((title, parts),) = sections(records, CURVE)
    assert title == "Training" and parts == [loss_plot(CURVE)]
    assert list(sections(records)) == []
