"""What `ratchet rollout status` says of the control after a promotion, and of the margin that is left."""

from __future__ import annotations

from deploy.cli.rollout import _control, _margin


def test_the_control_of_a_promotion_is_shown_with_its_guards_and_the_gain_so_far() -> None:
    evidence = {"control_labels": 14, "control_gain_low": -0.01, "control_gain_high": 0.314, "guards": 3.52}
    shown = {"control_percent": 5, "previous": None, "control_until": "2026-11-30T12:00:00Z", "evidence": evidence}
    assert _control(shown).startswith("5 % of users stay on the base model as control until ")
    assert _control(shown).endswith(
        "evidence of the guards 3.5 of 20; gain since the promotion -1.0 to +31.4 points by 14 labels"
    )


def test_the_margin_that_is_left_is_shown_with_the_wealth_against_it_and_what_a_promotion_took() -> None:
    evidence = {"margin_left": 0.007, "margin_debited": 0.0, "non_inferiority_wealth": 12.34, "alpha": 0.001}
    assert _margin(evidence) == (
        "0.7 points are left for candidates that are merely not worse; wealth against being worse by more 12.3 of 1000"
    )
    assert _margin(evidence | {"margin_debited": 0.013}) == (
        "promoted as not worse by more than 1.3 points; 0.7 points are left for candidates that are merely not worse"
    )
