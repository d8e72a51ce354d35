"""What `ratchet rollout` says of the control after a promotion and of the margin that is left, and who moves it."""

from __future__ import annotations

import getpass
import os
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli import rollout
from deploy.cli.app import app
from deploy.cli.rollout import _control, _margin


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 1234"), OSError("No username set")])
def test_a_user_without_a_name_may_roll_back(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Python has raised KeyError up to 3.12, and raises OSError since."""
    sent: dict[str, Any] = {}

    def getuser() -> str:
        raise error

    def answer(method: str, path: str, json: dict[str, Any]) -> dict[str, Any]:
        sent.update(json)
        return {"candidate": "lora-1", "stage": "rejected", "paused": False, "reason": json["reason"]}

    monkeypatch.setattr(getpass, "getuser", getuser)
    monkeypatch.setattr(rollout, "_ask", answer)
    result = CliRunner().invoke(app, ["rollout", "rollback", "desk", "--reason", "wrong refunds"])
    assert result.exit_code == 0, result.exception
    assert sent == {"by": f"uid {os.getuid()}", "reason": "wrong refunds"}


@pytest.mark.parametrize("arguments", [(), ("--json",)])
@pytest.mark.parametrize(
    ("tasks", "way_out"), [(["desk", "haiku"], "Tasks that had: desk, haiku"), ([], "No task had")]
)
def test_the_status_of_a_task_without_a_candidate_is_an_error_that_names_those_with_one(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], tasks: list[str], way_out: str
) -> None:
    monkeypatch.setattr(rollout, "_ask", lambda *_, **__: {"rollouts": [{"task": task} for task in tasks], "moves": []})
    result = CliRunner().invoke(app, ["rollout", "status", "dekk", *arguments])
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert "dekk has had no candidate yet" in result.stderr and way_out in result.stderr


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
