"""The losses of a training are kept within a bound, and drawn over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from schemas.cycles import StepProgressed
from services.console.history import MAX_LOSSES, Losses, with_loss
from services.console.pages.cycle import sections
from shared.report.blocks import Line, Plot
from shared.report.html import fragment

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
    ((_, plots),) = sections([], losses)
    assert len(plots) == 2


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


CURVE = curve((1, 4.0, None), (2, 2.0, 3.0), (3, 1.0, None), (5, 1.0, 1.5))


def test_the_card_of_a_training_has_both_losses_over_the_steps_while_it_runs() -> None:
    ((title, (plot,)),) = sections([], CURVE)
    assert title == "Training" and isinstance(plot, Plot)
    assert plot.lines == [
        Line("loss 1", [(1, 4.0), (2, 2.0), (3, 1.0), (5, 1.0)]),
        Line("validation 1.5", [(2, 3.0), (5, 1.5)]),
    ]
    assert (plot.x.ticks, plot.y.ticks) == ([(1, "1"), (5, "5")], [(0.0, "0"), (4.0, "4")])
    assert list(sections([])) == []


@pytest.mark.parametrize("report", [(1, 0.0, None), (3, 2.0, 2.0)])
def test_a_single_step_is_drawn(report: Report) -> None:
    drawn = str(fragment(dict(sections([], curve(report)))["Training"]))
    assert "nan" not in drawn and "<circle" in drawn
