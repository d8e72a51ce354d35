"""What `ratchet rollout` says of the control after a promotion and of the margin that is left, and who moves it."""

from __future__ import annotations

import getpass
import os
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli import rollout
from deploy.cli.app import app


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


def test_the_status_says_what_is_proved_who_is_control_and_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = {
        "wealth": 12.34, "alpha": 0.001, "wins": 7, "losses": 2, "pending": 3, "gain_low": -0.01, "gain_high": 0.2,
        "warning": "less sure", "margin_left": 0.007, "non_inferiority_wealth": 12.34, "margin_debited": 0.0,
        "control_labels": 14, "control_gain_low": -0.01, "control_gain_high": 0.314, "guards": 3.52,
    }  # fmt: skip
    move = {"candidate": "desk-2", "stage": "promoted", "paused": "", "reason": "proven", "evidence": evidence}
    shown = {
        **move, "task": "desk", "primary": "desk-2", "previous": None, "stage_since": "2026-11-23T12:00:00Z",
        "canary_wealth": 20.0, "control_percent": 5, "control_until": "2026-11-30T12:00:00Z",
        "trouble": "Unleash is off",
        "adapters": {"desk-1": "no answer"},
    }  # fmt: skip
    history = [{**move, "at": "2026-11-23T12:00:00Z", "moved_by": "ana"}]
    monkeypatch.setattr(rollout, "_ask", lambda *_, **__: {"rollouts": [shown], "moves": history})
    result = CliRunner().invoke(app, ["rollout", "status", "desk"])
    assert result.exit_code == 0, result.exception
    for said in (
        "desk: proven. Until 2026-11-30T12:00:00Z.", "5 % of users still on the base model as control", "ana",
        "-1.0 to +31.4 points by 14 labels", "3.52 of 20", "0.7 points are left", "desk: less sure", "7 wins, 2 losses",
    ):  # fmt: skip
        assert said in result.stdout, said
    assert "desk waits: Unleash is off" in result.stderr and "desk-1: no answer" in result.stderr
