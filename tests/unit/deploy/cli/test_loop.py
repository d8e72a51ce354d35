"""`ratchet loop`: one fault at a time, and an exit code that says whether it ended as it should."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli.app import app
from deploy.demo.report.result import LoopResult
from deploy.demo.settings import Fault, LoopOptions, PlannedMistakes
from tests.unit.deploy.demo.inspections import inspection


class Runs:
    """Stands for the loop: ends as it is told to, and remembers what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failed: str, promoted: bool = False) -> None:
        self.asked: list[LoopOptions] = []

        def run(options: LoopOptions, terminal: Any, *, stop_stack: bool) -> LoopResult:
            self.asked.append(options)
            result = LoopResult(task="t", fault=options.fault, promoted=promoted)
            result.cycle.inspection = inspection(*failed)
            return result

        monkeypatch.setattr("deploy.demo.story.run", run)


def loop(*arguments: str) -> int:
    return CliRunner().invoke(app, ["loop", *arguments]).exit_code


@pytest.mark.parametrize(
    ("arguments", "fault", "mistakes"),
    [
        ([], None, PlannedMistakes()),
        (["--wrong-share", "0.1", "--disagree-share", "0.2"], None, PlannedMistakes(0.1, 0.2)),
        (["--noise", "0.3"], Fault.NOISE, PlannedMistakes(0.3, 0.0)),
        (["--shuffle-labels"], Fault.SHUFFLED_LABELS, PlannedMistakes()),
        (["--one-class"], Fault.ONE_CLASS, PlannedMistakes(0.0, 0.0)),
    ],
)
def test_a_fault_is_what_the_reviewers_do(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], fault: Fault | None, mistakes: PlannedMistakes
) -> None:
    runs = Runs(monkeypatch)
    loop(*arguments)
    (options,) = runs.asked
    assert (options.fault, options.mistakes) == (fault, mistakes)


@pytest.mark.parametrize("two", [["--noise", "0.3", "--one-class"], ["--shuffle-labels", "--one-class"]])
def test_two_faults_at_once_are_refused_since_either_might_have_stopped_it(
    monkeypatch: pytest.MonkeyPatch, two: list[str]
) -> None:
    runs = Runs(monkeypatch)
    assert loop(*two) == 2
    assert runs.asked == []


@pytest.mark.parametrize("name", ["My Task", "-desk", "d" * 64, ""])
def test_a_name_that_no_task_can_have_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    runs = Runs(monkeypatch)
    assert loop("--task-name", name) == 2
    assert runs.asked == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--labels", "5"],
        ["--text", "question", "--label", "class"],
        ["--kind", "tools", "--data", "calls.jsonl", "--text", "question"],
    ],
)
def test_an_option_of_a_csv_file_is_refused_where_there_is_none_for_it(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """It was left out of account: the loop with all ten labels took its ten minutes."""
    runs = Runs(monkeypatch)
    assert loop(*arguments) == 2
    assert runs.asked == []
    loop("--data", "questions.csv", "--text", "question", "--label", "class", "--labels", "5")
    assert [asked.data.max_labels for asked in runs.asked] == [5]


@pytest.mark.parametrize(
    ("arguments", "failed", "promoted", "code"),
    [
        ([], [], True, 0),
        ([], ["agreement"], False, 2),
        (["--noise", "0.3"], ["agreement"], False, 0),
        (["--noise", "0.3"], ["min_examples"], False, 2),
        (["--noise", "0.3"], [], True, 2),
        (["--shuffle-labels"], ["labels_predictable"], False, 0),
        (["--one-class"], ["labels_to_learn"], False, 0),
        (["--one-class"], ["agreement"], False, 2),
    ],
)
def test_the_exit_code_is_0_only_where_it_ended_as_it_should(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], failed: list[str], promoted: bool, code: int
) -> None:
    Runs(monkeypatch, *failed, promoted=promoted)
    assert loop(*arguments) == code
