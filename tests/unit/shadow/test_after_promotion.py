"""After a promotion, while there is a control, the adapter before is replayed on what the promoted one answered."""

from __future__ import annotations

import pytest

from schemas.base import Variant
from schemas.conversation import FinishReason
from schemas.rollouts import RolloutChanged, Stage
from services.shadow.clients import Replay
from tests.unit.shadow.fakes import Shadow, prediction, reply, rollout, texts
from tests.unit.shadow.test_vllm_engine import Engine, asked


def promoted(previous: str | None = None, *, control: bool = True) -> RolloutChanged:
    of_a1 = {"previous_adapter": previous, "control": control}
    return rollout(Stage.PROMOTED, primary="a1").model_copy(update=of_a1)


SERVED = {"variant": Variant.PRIMARY, "adapter": "a1"}


async def test_each_arm_keeps_its_side_though_the_candidate_serves(shadow: Shadow) -> None:
    (pair,) = await shadow.replay(prediction(**SERVED), under=promoted("a0"))
    assert texts(pair) == ("delivery", "refund"), "replayed: delivery; served: refund"
    assert (pair.production_adapter, pair.candidate_adapter, pair.after_promotion) == ("a0", "a1", True)


async def test_a_pair_before_the_promotion_says_so(shadow: Shadow) -> None:
    (pair,) = await shadow.replay(prediction())
    assert not pair.after_promotion


async def test_what_the_adapter_before_answers_as_well_agrees(shadow: Shadow) -> None:
    shadow.candidate.given = reply("refund")
    (pair,) = await shadow.replay(prediction(**SERVED), under=promoted())
    assert pair.agree and pair.production_adapter is None


@pytest.mark.parametrize("given", [reply(None), reply("deliv", FinishReason.LENGTH)], ids=["failed", "cut"])
async def test_where_the_adapter_before_fails_or_is_cut_there_is_no_pair_as_where_the_promoted_one_is(
    shadow: Shadow, given: Replay
) -> None:
    """A served answer that was cut makes none. To judge the other's as it is would find a gain where there is none."""
    shadow.candidate.given = given
    assert await shadow.replay(prediction(**SERVED), under=promoted("a0")) == []
    assert len(shadow.candidate.asked) == 1


async def test_what_the_control_was_served_is_no_pair_and_without_control_nothing_is(shadow: Shadow) -> None:
    control = prediction(variant=Variant.ROLLBACK, adapter="a0")
    assert await shadow.replay(control, under=promoted("a0")) == []
    assert await shadow.replay(prediction(**SERVED), under=promoted("a0", control=False)) == []
    assert shadow.candidate.asked == []


@pytest.mark.parametrize(("previous", "model"), [("a0", "a0"), (None, "base")])
async def test_the_adapter_before_is_asked_or_the_base_model_where_there_was_none(
    previous: str | None, model: str
) -> None:
    engine = Engine()
    replay = await engine.replay_engine().candidate(promoted(previous), asked())
    assert replay is not None and replay.answer is not None
    assert [body["model"] for body in engine.bodies] == [model]
