"""A candidate that is not shown to be better, but proven not to be worse by more than a margin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from schemas.base import utc_now
from schemas.rollouts import Stage
from schemas.task_settings import RolloutSettings
from services.deployer.domain import Ledger, Ticket, decide
from services.deployer.operators.commands import CommandRefused
from services.deployer.statistics.canary import CanaryCounts
from services.deployer.statistics.levels import LEAST
from services.deployer.statistics.non_inferiority import YEARLY_MARGIN, Allowance, Promotion
from tests.unit.deployer.fakes import Deployer, evaluated, pair

TASK = "support-desk"
WANTED: dict[str, Any] = {
    "non_inferiority": True, "annotator_error": 0.0, "cycles_per_year": 1, "canary_wealth": 5, "max_labels": 2,
}  # fmt: skip
"""1/alpha is 20, and two labels are all that people give."""


async def started(max_open: int = 50, **rollout: Any) -> Deployer:
    deployer = Deployer(max_open=max_open)
    await deployer.handlers.on_evaluated(evaluated(**(WANTED | rollout)))
    return deployer


async def agree(deployer: Deployer, numbers: Iterable[int], user: str = "") -> None:
    await deployer.compare(*[pair(deployer.last, number, ("refund", "refund"), user=user) for number in numbers])


async def label(deployer: Deployer, outcomes: str, start: int = 5_000) -> None:
    """Pairs that differ, each of them labelled: + for a win of the candidate, - for a loss."""
    for number, outcome in enumerate(outcomes, start):
        await deployer.compare_and_label([number], "delivery" if outcome == "+" else "refund")


async def serve(deployer: Deployer) -> None:
    """The canary serves all the users whom its step needs."""
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)


async def test_it_goes_from_canary_to_everyone_with_its_reason_and_the_margin_is_debited() -> None:
    deployer = await started()
    await agree(deployer, range(400))
    await label(deployer, "-+")
    canary = deployer.last
    assert (canary.stage, canary.canary_percent, canary.evidence.margin_debited) == (Stage.CANARY, 5, 0.0)
    assert canary.evidence.margin_left == 0.02
    await serve(deployer)
    promoted = deployer.last
    assert promoted.stage is Stage.PROMOTED
    debited = promoted.evidence.margin_debited
    assert 0.005 < debited < 0.02, "no more than was needed"
    assert promoted.evidence.wealth < 20 <= promoted.evidence.non_inferiority_wealth
    words = f"not worse by more than {100 * debited:.3g} points by the first pairs of 402 subjects: wealth "
    assert promoted.reason.startswith(words) and "= 1/α after 1 win, 1 loss, 400 ties" in promoted.reason
    assert promoted.evidence.margin_left == pytest.approx(0.02 - debited)
    assert (await deployer.rollouts.history(TASK, 1))[0].reason == promoted.reason
    assert deployer.admin.serves(TASK) == "a1"


async def test_off_all_is_as_without_it() -> None:
    deployer = await started(non_inferiority=False)
    await agree(deployer, range(400))
    await label(deployer, "-+")
    assert deployer.last.stage is Stage.INCONCLUSIVE
    assert deployer.last.reason == (
        "all 2 labels are spent and the candidate is not proven better: 1 win, 1 loss, 400 ties, 0 pending"
    )
    evidence = deployer.last.evidence
    assert (evidence.margin_left, evidence.non_inferiority_wealth) == (None, 1.0)


async def test_what_is_not_proven_by_then_ends_and_says_so() -> None:
    deployer = await started()
    await agree(deployer, range(50))
    await label(deployer, "-+")
    assert deployer.last.stage is Stage.INCONCLUSIVE
    assert "is not proven better, nor not to be worse by more than 2 points: 1 win" in deployer.last.reason


async def test_the_next_candidate_has_what_is_left_over_a_restart_and_its_level_is_not_given_back() -> None:
    deployer = await started()
    await agree(deployer, range(400))
    await label(deployer, "-+")
    await serve(deployer)
    left = deployer.last.evidence.margin_left
    again = Deployer(rollouts=deployer.rollouts, admin=deployer.admin)
    await again.handlers.on_evaluated(evaluated("a2", against="a1", **WANTED))
    await again.handlers.tick(TASK)
    assert again.last.stage is Stage.SHADOW
    assert (await again.transitions.evidence(await again.rollouts.last_entered(TASK))).margin_left == left
    assert again.last.evidence.alpha < 2 * LEAST + 1e-6, "the one before was tested for being better, too"


async def test_a_margin_that_is_used_up_promotes_nobody_and_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await started()

    async def promotions(task: str) -> list[Promotion]:
        return [Promotion(utc_now(), 0.012), Promotion(utc_now(), 0.004)]

    monkeypatch.setattr(deployer.rollouts, "promotions", promotions)
    await agree(deployer, range(400))
    await label(deployer, "-+")
    assert deployer.last.stage is Stage.INCONCLUSIVE
    assert deployer.last.reason.endswith(
        "; and not promoted as not worse either: of the 2 points that such promotions may give away in a year, and "
        "since the last one that was proven better, 0.4 are left"
    )
    assert deployer.last.evidence.margin_left == 0.004


async def test_one_that_may_still_prove_to_be_better_is_not_promoted_as_not_worse() -> None:
    deployer = await started(max_labels=300)
    await agree(deployer, range(400))
    await label(deployer, "-+")
    assert deployer.last.stage is Stage.SHADOW
    evidence = await deployer.transitions.evidence(await deployer.rollouts.last_entered(TASK))
    assert evidence.non_inferiority_wealth > 20
    await label(deployer, "+" * 20, 6_000)
    await serve(deployer)
    assert (deployer.last.stage, deployer.last.evidence.margin_debited) == (Stage.PROMOTED, 0.0)
    assert deployer.last.reason.startswith("wealth")


async def test_one_that_is_unlikely_to_win_goes_on_while_it_may_prove_not_to_be_worse() -> None:
    """Seven losses in a row are futile, but no harm yet."""
    deployer = await started(max_labels=300)
    await agree(deployer, range(20))
    await label(deployer, "-" * 7)
    assert deployer.last.stage is Stage.SHADOW
    await label(deployer, "+" * 7, 6_000)
    await agree(deployer, range(20, 500))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    assert deployer.last.reason.startswith(
        "perhaps not worse by more than 2 points, by the first pairs of 514 subjects"
    )
    assert "= the canary threshold after 7 wins, 7 losses" in deployer.last.reason


async def test_one_that_is_unlikely_to_win_ends_with_its_labels_where_it_is_not_proven_by_then() -> None:
    deployer = await started(max_labels=7)
    await agree(deployer, range(20))
    await label(deployer, "-" * 7)
    assert (deployer.last.stage, deployer.last.reason[:20]) == (Stage.INCONCLUSIVE, "all 7 labels are spe")


async def test_labels_that_speak_against_it_hold_it_back_though_it_was_proven_before() -> None:
    deployer = await started(max_labels=8)
    await agree(deployer, range(400))
    await label(deployer, "-" * 8)
    ledger = await deployer.transitions.ledger(await deployer.rollouts.last_entered(TASK))
    assert ledger.allowance is not None
    assert ledger.non_inferiority_wealth > 20 and ledger.bets.wealth_now(ledger.allowance) < 5
    assert deployer.last.stage is Stage.SHADOW


async def test_harm_ends_it_whatever_was_proven() -> None:
    deployer = await started(max_labels=300)
    await agree(deployer, range(900))
    await label(deployer, "-" * 10)
    assert deployer.last.stage is Stage.REJECTED
    assert "the candidate is worse" in deployer.last.reason


async def test_a_subject_counts_once_however_often_it_agrees_and_however_late_it_differs() -> None:
    deployer = await started()
    await agree(deployer, range(400), "user-9")
    await deployer.compare(pair(deployer.last, 401, ("refund", "delivery"), user="user-9"))
    ledger = await deployer.transitions.ledger(await deployer.rollouts.last_entered(TASK))
    (ticket,) = ledger.tickets
    assert (ticket.opens, ledger.agreeing, ledger.agreeing_subjects, ledger.bets.subjects) == (False, 400, 1, 1)


async def test_pairs_that_agree_count_up_to_the_oldest_one_that_waits_for_its_ticket() -> None:
    deployer = await started(max_open=1)
    await agree(deployer, range(3))
    await deployer.compare(pair(deployer.last, 10, ("refund", "delivery")))
    await agree(deployer, range(20, 24))
    await deployer.compare(pair(deployer.last, 30, ("refund", "delivery")))
    await agree(deployer, range(40, 45))
    ledger = await deployer.ledger.load(deployer.last.rollout_id)
    assert (ledger.agreeing, ledger.agreeing_subjects, ledger.bets.agreeing) == (12, 7, [3, 7])


@pytest.mark.parametrize(("error", "stage"), [(0.0, Stage.PROMOTED), (0.05, Stage.INCONCLUSIVE)])
async def test_wrong_labels_that_the_task_expects_make_the_margin_that_is_tested_smaller(
    error: float, stage: Stage
) -> None:
    deployer = await started(annotator_error=error)
    await agree(deployer, range(400))
    await label(deployer, "-+")
    await serve(deployer)
    assert deployer.last.stage is stage


@pytest.mark.parametrize(("pending", "losses"), [(3, 10), (8, 20)])
def test_labels_that_speak_against_it_hold_it_back_though_pairs_that_agree_prove_it_not_worse(
    pending: int, losses: int
) -> None:
    """They came after a few that nobody has labelled yet, so that harm, which counts those as won, is not shown."""
    tickets = [Ticket(outcome, agreeing=3_000) for outcome in (*[None] * pending, *[-1.0] * losses)]
    canary = CanaryCounts(percent=50, users=RolloutSettings().min_canary_users)
    ledger = Ledger(tickets, 3_000, canary, 3_000, Allowance(YEARLY_MARGIN, 0.05))
    assert decide(Stage.CANARY, ledger, 0.05 / 52, RolloutSettings(canary_steps=(5, 50))) is None


async def test_one_that_differs_in_nothing_is_nothing_to_promote() -> None:
    deployer = await started()
    await agree(deployer, range(1_000))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.reason[:18]) == (Stage.REJECTED, "nothing to promote")


async def test_a_person_approves_it_like_any_other() -> None:
    deployer = await started(approval=True)
    await agree(deployer, range(400))
    with pytest.raises(CommandRefused, match="not proven yet"):
        await deployer.commands.promote(TASK, "ann", "looks fine")
    await label(deployer, "-+")
    await serve(deployer)
    assert deployer.last.stage is Stage.CANARY
    promoted = await deployer.commands.promote(TASK, "ann", "looks fine")
    assert promoted.reason.startswith("approved: looks fine; not worse by more than ")
    assert (promoted.stage, promoted.evidence.margin_debited > 0) == (Stage.PROMOTED, True)


async def test_a_promotion_that_no_replica_serves_in_the_end_debits_nothing() -> None:
    deployer = await started()
    await agree(deployer, range(400))
    await label(deployer, "-+")
    deployer.adapters.refused.add("a1")
    await serve(deployer)
    history = await deployer.rollouts.history(TASK, 2)
    assert [move.stage for move in history] == [Stage.REJECTED, Stage.PROMOTED]
    assert await deployer.rollouts.promotions(TASK) == []
    evidence = deployer.last.evidence
    assert (evidence.margin_debited, evidence.margin_left) == (0.0, pytest.approx(0.02))
