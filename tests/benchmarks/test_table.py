"""A benchmark that misses an aim ends the command with 1, whichever it is, and does not keep others from running."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import table
from tests.benchmarks.table import Measured, Result, report


def result(ratio: float, min_ratio: float | None = None) -> Result:
    return Result("answers", "requests/s", ratio, 1.0, ratio, "peer", 5, min_ratio)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of results, in a repository whose only commit is empty."""
    git = ("git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@example.com")
    subprocess.run((*git, "init", "--quiet"), check=True)
    subprocess.run((*git, "commit", "--quiet", "--allow-empty", "--message", "empty"), check=True)
    folder = tmp_path / "tests" / "benchmarks" / "results"
    folder.mkdir(parents=True)
    monkeypatch.setattr(table, "RESULTS", folder)
    return folder


def test_results_name_their_commit_and_those_of_changed_files_are_not_written(results: Path) -> None:
    report([result(0.5)], "b")
    report([result(0.5)], "c")  # The results themselves are no change.
    commit = subprocess.run(("git", "rev-parse", "--short", "HEAD"), cwd=results, capture_output=True, text=True).stdout
    assert {json.loads((results / f"{name}.json").read_text())["commit"] for name in "bc"} == {commit.strip()}
    (results.parent / "changed.py").touch()
    report([result(0.5)], "d")
    assert sorted(path.name for path in results.iterdir()) == ["b.json", "b.md", "c.json", "c.md"]


def stopped() -> NoReturn:
    raise SystemExit("no data")


@pytest.mark.parametrize(
    ("benchmark", "problem"),
    [
        (lambda: report([result(0.5, 0.6)], "b"), "missed: answers (peer)"),
        (lambda: report([], "b", [Measured("p50", "ms", 2.0, 1.0)]), "missed: p50"),
        (lambda: report([], "b", [Measured("rate", "1/s", 2.0, min_value=3.0)]), "missed: rate"),
        (lambda: report([result(0.6, 0.6), result(0.1)], "b", [Measured("p50", "ms", 1.0, 1.0)]), ""),
        (stopped, "ended with no data"),
    ],
)  # fmt: skip
def test_what_a_benchmark_missed_is_named(benchmark: Callable[[], None], problem: str) -> None:
    assert command.problem_of(benchmark) == problem
    assert command.problem_of(lambda: None) == ""


def test_all_run_and_the_command_ends_with_1_if_one_missed_an_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def load(module: str) -> SimpleNamespace:
        def main() -> None:
            ran.append(module)
            report([result(0.5, 0.6 if module.endswith("spool") else 0.4)], "b")

        return SimpleNamespace(main=main)

    monkeypatch.setattr(command.importlib, "import_module", load)
    with pytest.raises(SystemExit) as ended:
        command.main(["spool", "gateway"])
    assert ended.value.code == "spool: missed: answers (peer)"  # Python prints a text and ends with 1.
    assert ran == ["tests.benchmarks.spool", "tests.benchmarks.gateway"]
    command.main(["gateway"])
