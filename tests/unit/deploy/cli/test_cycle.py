"""`ratchet cycle`: starts a cycle of a task, and stops the one whose step does not answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli import output, tasks
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


def test_without_a_terminal_the_list_of_tasks_has_every_id_and_time_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe, or cron, is no terminal: Rich takes it for one of 80 columns."""
    task = {
        "name": "support-desk-of-the-north", "kind": "classification", "base_model": "Qwen/Qwen3-0.6B-Base",
        "revision": "0123456789ab", "labels": 7, "cron": "0 3 * * 1", "next_cycle_at": "2026-11-30T03:00:00Z",
        "cycle_id": "support-desk-of-the-north-20261123-030000", "step": "training", "late": False,
    }  # fmt: skip
    answer = {"tasks": [task], "broken": {"x.yaml": "x.yaml:1: found nothing"}}
    monkeypatch.setattr(tasks, "ask_scheduler", lambda *_: json.loads(json.dumps(answer)))
    monkeypatch.setattr(output.console, "width", 80)
    shown = CliRunner().invoke(app, ["tasks", "list"])
    assert all(str(value) in shown.stdout for value in task.values() if value)
    assert json.loads(CliRunner().invoke(app, ["tasks", "list", "--json"]).stdout) == answer
