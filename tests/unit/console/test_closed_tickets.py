"""Until when the tickets of a cycle are closed, by what became of its rollouts."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from schemas.rollouts import Stage
from services.console.domain import RolloutState, comparisons_ended
from tests.unit.console.fakes import NOON


def at(minutes: int) -> datetime:
    return NOON + timedelta(minutes=minutes)


def test_while_a_candidate_is_compared_nothing_is_closed() -> None:
    assert (
        comparisons_ended(
            [RolloutState("r1", Stage.SHADOW, False, at(0)), RolloutState("r1", Stage.CANARY, False, at(1))]
        )
        is None
    )


@pytest.mark.parametrize("stage", [Stage.REJECTED, Stage.INCONCLUSIVE, Stage.ROLLED_BACK, Stage.PROMOTED])
def test_the_end_of_a_rollout_closes_what_was_asked_until_then(stage: Stage) -> None:
    assert comparisons_ended(
        [RolloutState("r1", Stage.CANARY, False, at(0)), RolloutState("r1", stage, False, at(1))]
    ) == at(1)


def test_new_evidence_of_a_promotion_closes_no_question_about_its_fresh_pairs() -> None:
    promoted = [RolloutState("r1", Stage.PROMOTED, True, at(minutes)) for minutes in (7, 1, 3)]
    assert comparisons_ended(promoted) == at(1), "what was asked before the promotion"


@pytest.mark.parametrize("stage", [Stage.PROMOTED, Stage.ROLLED_BACK])
def test_the_end_of_a_control_closes_the_questions_about_fresh_pairs(stage: Stage) -> None:
    promoted = [RolloutState("r1", Stage.PROMOTED, True, at(minutes)) for minutes in (1, 3)]
    assert comparisons_ended([*promoted, RolloutState("r1", stage, False, at(9))]) == at(9)


def test_the_promotion_of_a_second_candidate_of_the_cycle_closes_what_was_asked_about_it() -> None:
    first = [RolloutState("r1", Stage.PROMOTED, True, at(1)), RolloutState("r1", Stage.PROMOTED, False, at(2))]
    assert comparisons_ended([*first, *(RolloutState("r2", Stage.PROMOTED, True, at(m)) for m in (5, 6))]) == at(5)


@pytest.mark.parametrize("control", [False, True])
def test_a_promotion_closes_what_was_asked_while_it_waited_for_its_flags(control: bool) -> None:
    """Those questions stayed open, and their answers counted nowhere."""
    promoted = [RolloutState("r1", Stage.PROMOTED, control, at(minutes), at(5)) for minutes in (1, 9)]
    assert comparisons_ended(promoted[:1]) == at(5)
    assert comparisons_ended(promoted) == at(5 if control else 9)
    ended = RolloutState("r1", Stage.PROMOTED, False, at(20), at(5))
    assert comparisons_ended([*promoted, ended]) == at(20), "the end of its control"
