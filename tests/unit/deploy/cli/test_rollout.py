"""What `ratchet rollout status` says of a promotion while some users stay on the adapter before."""

from __future__ import annotations

from deploy.cli.rollout import _control


def test_the_control_of_a_promotion_is_shown_with_its_guards_and_the_gain_so_far() -> None:
    evidence = {"control_labels": 14, "control_gain_low": -0.01, "control_gain_high": 0.314, "guards": 3.52}
    shown = {"control_percent": 5, "previous": None, "control_until": "2026-11-30T12:00:00Z", "evidence": evidence}
    assert _control(shown).startswith("5 % of users stay on the base model as control until ")
    assert _control(shown).endswith(
        "evidence of the guards 3.5 of 20; gain since the promotion -1.0 to +31.4 points by 14 labels"
    )
