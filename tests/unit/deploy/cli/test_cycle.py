"""`ratchet cycle`: starts a cycle of a task, and stops the one whose step does not answer."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli import tasks
from deploy.cli.app import app


class Scheduler:
    """Answers the command, and remembers what it was asked to change."""

    def __init__(self, cycle_id: str | None, step: str | None) -> None:
        self._task = {"name": "desk", "cycle_id": cycle_id, "step": step, "late": True}
        self.changes: list[str] = []

    def answer(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        if method == "GET":
            other = {"name": "other", "cycle_id": "other-1", "step": "failures", "late": False}
            return {"tasks": [other, self._task], "broken": {"desk.yaml": "/tasks/desk.yaml:3: found a typo"}}
        self.changes.append(path)
        return {"cycle_id": "desk-2"}


@pytest.mark.parametrize(
    ("arguments", "cycle_id", "step", "changes", "says"),
    [
        (("desk",), None, None, ["/api/cycles"], "started desk-2"),
        (("desk", "--stop"), "desk-1", "dataset", ["/api/cycles/desk-1/stop"], "stopped desk-1"),
        (("desk", "--stop"), "desk-1", "rollout", [], "ratchet rollout rollback desk"),
        (("desk", "--stop"), None, None, [], "no cycle of desk is running"),
        (("nobody", "--stop"), "desk-1", "dataset", [], "no cycle of nobody is running"),
    ],
)
def test_a_cycle_is_started_and_one_before_its_rollout_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    cycle_id: str | None,
    step: str | None,
    changes: list[str],
    says: str,
) -> None:
    scheduler = Scheduler(cycle_id, step)
    monkeypatch.setattr(tasks, "ask_scheduler", scheduler.answer)
    result = CliRunner().invoke(app, ["cycle", *arguments])
    assert says in result.output
    assert (scheduler.changes, result.exit_code) == (changes, 0 if changes else 1)


def test_the_list_of_tasks_says_which_step_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ask_scheduler", Scheduler("desk-1", "dataset").answer)
    result = CliRunner().invoke(app, ["tasks", "list"])
    assert "dataset, late" in result.output
    assert "failures, late" not in result.output


def test_the_list_of_tasks_warns_of_every_invalid_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ask_scheduler", Scheduler(None, None).answer)
    result = CliRunner().invoke(app, ["tasks", "list"])
    assert "/tasks/desk.yaml:3: found a typo" in result.stderr
    assert "typo" not in result.stdout
