"""Every group of commands prints an error in one way: on standard error, as it is, with the way out and exit code 1."""

from __future__ import annotations

import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from deploy.cli import output
from deploy.cli.app import app
from shared.errors import RatchetError, unusable_file
from shared.report.blocks import Table
from tests.conftest import ROOT

ODD = "root:x:0 [bold]x[/bold]"
"""Rich would read an emoji and a style in it."""


def ratchet(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "400"})


def fail(*_: Any, **__: Any) -> None:
    raise RatchetError(ODD, f"try {ODD}")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("tasks", "check", f"{ODD}.yaml"),
        ("tasks", "apply", f"{ODD}.yaml"),
        ("loop", "--data", f"{ODD}.csv"),
        ("logs", ODD),
        ("up", "--only", ODD),
        ("down", "--only", ODD),
        ("install", ODD),
        ("keys", "revoke", ODD),
        ("keys", "rotate", ODD),
        ("keys", "revoke", "--app", ODD),
    ],
)
def test_what_the_user_gave_is_in_the_error_as_it_is(arguments: tuple[str, ...]) -> None:
    result = ratchet(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert ODD in result.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "failing"),
    [
        (("topics", "list"), "deploy.cli.topics.find_drift"),
        (("topics", "correct"), "deploy.cli.topics.create_topics"),
        (("dlq", "list"), "deploy.cli.dead_letters._count_all"),
        (("dlq", "show", "gateway"), "deploy.cli.dead_letters.read_dead_letters"),
        (("dlq", "replay", "gateway"), "deploy.cli.dead_letters.replay_dead_letters"),
        (("lake", "status"), "deploy.cli.lake._topic_lags"),
        (("lake", "resume"), "deploy.cli.lake._topic_lags"),
        (("contract", "check"), "deploy.cli.contract.drift"),
        (("contract", "generate"), "deploy.cli.contract.generate"),
        (("keys", "list"), "deploy.cli.keys.read_keys"),
        (("forget", "jo"), "deploy.cli.forget.ask_scheduler"),
        (("cycle", "desk"), "deploy.cli.tasks.ask_scheduler"),
        (("tasks", "list"), "deploy.cli.tasks.ask_scheduler"),
        (("status",), "deploy.devstack.stack.status"),
        (("up",), "deploy.devstack.stack.up"),
        (("loop",), "deploy.demo.story.run"),
    ],
)
def test_reason_and_way_out_of_an_error_are_printed_as_they_are(
    arguments: tuple[str, ...], failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failing, fail)
    result = ratchet(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"{ODD}\ntry {ODD}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("tasks", "apply", str(ROOT / "deploy/tasks/support-desk.yaml")),
        ("up", "--only", "postgres"),
        ("install", "postgres"),
    ],
)
def test_a_home_that_cannot_be_used_is_an_error_with_its_path(
    arguments: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("no folder")
    monkeypatch.setenv("RATCHET_HOME", str(home / "file"))
    result = ratchet(*arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert str(home / "file") in result.stderr and "RATCHET_HOME" in result.stderr


def test_a_program_that_is_missing_is_an_error_that_says_to_install_it(home: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        subprocess.run([home / "programs" / "postgres"], check=False)
    error = unusable_file(raised.value)
    assert str(home / "programs" / "postgres") in error.reason
    assert "ratchet install" in error.way_out and "RATCHET_HOME" not in error.way_out


@pytest.mark.parametrize("arguments", [("tasks", "check"), ("golden", "add", "desk", "--reason", "r", "--file")])
def test_a_file_that_is_not_there_is_looked_for_and_not_written_otherwise(
    arguments: tuple[str, ...], home: Path
) -> None:
    (home / "tasks").mkdir()
    (home / "tasks" / "desk.yaml").write_text("name: desk\nkind: generation\nsystem_prompt: Help.\n")
    result = ratchet(*arguments, str(home / "none"))
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert "cannot be read" in result.stderr and "mistake in its path" in result.stderr
    assert "template.yaml" not in result.stderr and "datasets.md" not in result.stderr


def test_an_invalid_argument_is_printed_as_it_is() -> None:
    for arguments in (("forget", "--file", f"{ODD}.txt"), ("dlq", "show", ODD)):
        result = ratchet(*arguments)
        assert result.exit_code == 2
        assert ODD in result.stderr


def test_the_schedulers_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = httpx.Response(404, json={"error": {"message": ODD}})
    monkeypatch.setattr(httpx, "request", lambda *_, **__: refusal)
    result = ratchet("cycle", "desk")
    assert (result.exit_code, result.stderr) == (1, f"{ODD}\n")


def test_a_scheduler_that_does_not_answer_is_an_error_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_SCHEDULER_PORT", "9")
    result = ratchet("tasks", "list")
    assert result.exit_code == 1
    assert "http://127.0.0.1:9" in result.stderr and "ratchet status" in result.stderr


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(200, text="<html>"), httpx.Response(404, json={"name": "NotFoundError"}), httpx.Response(502)],
)
def test_a_server_that_is_not_the_scheduler_is_an_error_with_its_address(
    answer: httpx.Response, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpx, "request", lambda *_, **__: answer)
    result = ratchet("cycle", "desk")
    assert (result.exit_code, result.stdout) == (1, ""), result.exception
    assert "what answers at http://127.0.0.1:28091 is not the scheduler" in result.stderr
    assert "RATCHET_SCHEDULER_PORT" in result.stderr


def test_a_scheduler_that_fails_is_not_taken_for_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(500, text="Internal Server Error"))
    result = ratchet("cycle", "desk")
    assert result.exit_code == 1
    assert (
        "the scheduler failed at http://127.0.0.1:28091" in result.stderr and "ratchet logs services" in result.stderr
    )
    assert "RATCHET_SCHEDULER_PORT" not in result.stderr


@pytest.mark.parametrize("arguments", [("dlq", "list"), ("dlq", "show", "gateway"), ("dlq", "replay", "gateway")])
def test_a_broker_that_does_not_answer_is_said_once(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RATCHET_KAFKA", "127.0.0.1:9")
    result = ratchet(*arguments)
    assert (result.exit_code, result.stderr.count("127.0.0.1:9")) == (1, 1), result.output
    assert caplog.messages == []


def test_a_files_name_is_printed_as_it_is_where_nothing_fails(tmp_path: Path) -> None:
    path = tmp_path / f"{ODD.replace('/', '')}.yaml"
    path.write_text("name: desk\nkind: generation\nsystem_prompt: Answer.\n")
    result = ratchet("tasks", "check", str(path))
    assert result.exit_code == 0, result.output
    assert f"{path}: generation task desk" in result.stdout


def test_a_paragraph_of_help_breaks_where_the_terminal_ends() -> None:
    shown = CliRunner().invoke(app, ("keys", "--help"), env={"COLUMNS": "80", "TERM": "dumb"}).stdout
    text = shown.partition("Without keys")[2].partition("Steps")[0].strip()
    assert min(len(line.rstrip()) for line in text.splitlines()[:-1]) > 55
    assert "\n   ratchet keys create shop " in shown.replace("\n \n", "\n"), "lines of an example stay"


def test_other_exceptions_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: Any) -> None:
        raise ModuleNotFoundError("a defect", name="services.nowhere")

    monkeypatch.setattr("deploy.cli.lake._topic_lags", defect)
    assert isinstance(ratchet("lake", "status").exception, ModuleNotFoundError)


def test_a_misspelt_setting_is_named_once_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_KAFAK", "broker:9092")
    result = ratchet("dlq", "list")
    assert result.stderr.count("RATCHET_KAFAK is no setting, and does nothing. Did you mean RATCHET_KAFKA?") == 1


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_table_cuts_nothing_and_its_ids_stay_on_one_line_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    file = StringIO()
    monkeypatch.setattr(output, "console", Console(file=file, width=width, force_terminal=True, color_system=None))
    name, at, why = "desk-20261123-120000", "2026-11-23 12:00", "offline-gates-failed-" * 5
    output.show_blocks(Table(("cycle", "at", "why"), [(name, at, why)], whole=("cycle", "at")))
    lines = [line.split("│")[1:-1] for line in file.getvalue().splitlines() if "│" in line]
    cells = ["".join(cell.strip() for cell in column) for column in zip(*lines, strict=True)]
    assert cells == [name, at if width > 30 else at.replace(" ", ""), why]
    assert (lines[0][0].strip() == name) == (width > 30)
    assert (lines[0][2].strip() == why) == (width == 200)
