from __future__ import annotations

import pytest

from schemas.base import Variant
from services.gateway.routing.arms import Arm, Primary, ServingFlags, choose_arms, parse_primary, remaining_arms

BOTH = Primary("new", "old")


@pytest.mark.parametrize(
    ("flags", "arm"),
    [
        (ServingFlags(), Arm(Variant.BASE)),
        (ServingFlags(primary=BOTH), Arm(Variant.PRIMARY, "new")),
        (ServingFlags(primary=Primary(None, None)), Arm(Variant.BASE)),
        (ServingFlags(primary=BOTH, canary="next"), Arm(Variant.CANARY, "next")),
        (ServingFlags(canary="next"), Arm(Variant.CANARY, "next")),
        (ServingFlags(primary=BOTH, canary="next", rollback=True), Arm(Variant.ROLLBACK, "old")),
        (ServingFlags(primary=Primary("new", None), rollback=True), Arm(Variant.ROLLBACK)),
        (ServingFlags(rollback=True), Arm(Variant.ROLLBACK)),
        (ServingFlags(primary=BOTH, control=True), Arm(Variant.ROLLBACK, "old")),
        (ServingFlags(primary=Primary("new", None), control=True), Arm(Variant.ROLLBACK)),
        (ServingFlags(primary=Primary(None, None), control=True), Arm(Variant.BASE)),
        (ServingFlags(control=True), Arm(Variant.BASE)),
    ],
)
def test_rollback_goes_before_canary_before_primary_before_base(flags: ServingFlags, arm: Arm) -> None:
    assert choose_arms(flags)[0] == arm


def test_fallbacks_end_with_the_base_model_and_repeat_no_adapter() -> None:
    assert choose_arms(ServingFlags(primary=BOTH, canary="next")) == (
        Arm(Variant.CANARY, "next"), Arm(Variant.PRIMARY, "new"), Arm(Variant.ROLLBACK, "old"), Arm(Variant.BASE),
    )  # fmt: skip
    assert choose_arms(ServingFlags(primary=BOTH, rollback=True)) == (Arm(Variant.ROLLBACK, "old"), Arm(Variant.BASE))
    assert choose_arms(ServingFlags(canary="next")) == (Arm(Variant.CANARY, "next"), Arm(Variant.BASE))
    assert choose_arms(ServingFlags(rollback=True)) == (Arm(Variant.ROLLBACK),)
    assert choose_arms(ServingFlags(primary=BOTH, control=True)) == (
        Arm(Variant.ROLLBACK, "old"), Arm(Variant.PRIMARY, "new"), Arm(Variant.BASE),
    )  # fmt: skip


def test_the_external_api_is_the_last_arm_with_its_own_model() -> None:
    external = Arm(Variant.EXTERNAL, model="large")
    arms = choose_arms(ServingFlags(primary=Primary("new", None)), "large")
    assert arms == (Arm(Variant.PRIMARY, "new"), Arm(Variant.BASE), external)
    assert [arm.model_name("small") for arm in arms] == ["new", "small", "large"]
    assert choose_arms(ServingFlags())[0] == Arm(Variant.BASE)


def test_when_no_replica_answers_only_the_external_api_remains() -> None:
    arms = choose_arms(ServingFlags(primary=BOTH), "large")
    assert [arm.variant for arm in remaining_arms(arms, arms[0], down=False)] == ["rollback", "base", "external"]
    assert [arm.variant for arm in remaining_arms(arms, arms[0], down=True)] == ["external"]
    assert remaining_arms(arms, arms[-1], down=True) == ()
    assert remaining_arms(arms, arms[-2], down=False) == ()
    assert remaining_arms(choose_arms(ServingFlags(primary=BOTH)), Arm(Variant.PRIMARY, "new"), down=True) == ()


@pytest.mark.parametrize("payload", ["", "null", "[]", "{", '"name"', '{"adapter": 3}', '{"adapter": ""}'])
def test_an_invalid_payload_is_refused(payload: str) -> None:
    with pytest.raises(ValueError, match=r"payload|adapter|Expecting"):
        parse_primary(payload)


def test_a_null_field_of_a_payload_may_be_missing() -> None:
    assert parse_primary('{"adapter": "a"}') == Primary("a", None)
