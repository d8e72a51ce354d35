"""`ratchet evaluation`: reports as the evaluator publishes them, listed, shown, copied and opened."""

from __future__ import annotations

import json
import webbrowser
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deploy.cli.app import app
from schemas.conversation import Message, Role
from schemas.datasets import Example
from schemas.evaluation import EvaluationReport
from services.evaluator.report.publish import publish_report
from shared.storage.artifacts import ArtifactStore
from tests.unit.evaluator.reports import classification, extraction, generation

REPORT = classification(4, 240)


def ratchet(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluation", *arguments], env={"RATCHET_HOME": str(home), "COLUMNS": "250"})


def publish(home: Path, report: EvaluationReport) -> Path:
    store = ArtifactStore(str(home / "artifacts"), home / "cache")
    return Path(publish_report(report, store, home / "made" / report.evaluation))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two evaluations of one adapter, one of another, and the data set with what was asked."""
    publish(tmp_path, REPORT)
    later = {"evaluation": "desk-2-vs-base-def456", "created_at": REPORT.created_at + timedelta(days=7)}
    publish(tmp_path, REPORT.model_copy(update={**later, "verdict": "passed", "headline": "Passed every gate."}))
    publish(tmp_path, extraction())
    rows = [
        Example(
            example_id=name, group=name, prediction_ids=(), correction_ids=(),
            messages=(
                Message(role=Role.USER, content=f"What about {name}?"),
                Message(role=Role.ASSISTANT, content="card"),
            ),
        )
        for name in REPORT.lost[1:]
    ]  # fmt: skip
    folder = tmp_path / "artifacts" / "datasets" / "desk-data"
    folder.mkdir(parents=True)
    (folder / "eval.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return tmp_path


def test_a_stopped_candidate_is_shown_with_its_reasons_and_exits_with_1(home: Path) -> None:
    shown = ratchet(home, "show", REPORT.evaluation)
    assert shown.exit_code == 1
    assert shown.output.startswith("Stopped by parts not worse.")
    for said in ("parts not worse", "class cash question 3", "linear classifier", "tokens/s", "evaluation.html"):
        assert said in shown.output, said


def test_generated_text_is_shown_with_every_metric_and_the_judge(home: Path) -> None:
    publish(home, generation())
    shown = ratchet(home, "show", "reply").output
    for said in ("ROUGE-L ●", "82.0% (60.6%–93.1%)", "not certified", "63.4%, required 80.0%"):
        assert said in shown, said
    assert "The judge <gpt> prefers the candidate on 11 rows" in shown
    assert "text metric" not in ratchet(home, "show", REPORT.evaluation).output


def test_lost_rows_are_read_from_the_data_set_and_one_that_is_gone_is_only_named(home: Path) -> None:
    gone, kept = REPORT.lost[:2]
    shown = ratchet(home, "show", REPORT.evaluation, "--lost", "2").output
    assert gone in shown and f"What about {gone}?" not in shown
    assert f"What about {kept}?" in shown
    assert f"What about {REPORT.lost[2]}?" not in shown
    assert "What about" not in ratchet(home, "show", REPORT.evaluation, "--lost", "0").output


@pytest.mark.parametrize("name", ["desk", "desk-2", "desk-2-vs-base-def456"])
def test_a_task_and_an_adapter_stand_for_their_newest_evaluation(home: Path, name: str) -> None:
    shown = ratchet(home, "show", name, "--json")
    assert (shown.exit_code, json.loads(shown.output)["evaluation"]) == (0, "desk-2-vs-base-def456")


def test_evaluations_are_listed_oldest_first(home: Path) -> None:
    listed = json.loads(ratchet(home, "list", "desk", "--json").output)
    assert [row["evaluation"] for row in listed] == [REPORT.evaluation, "desk-2-vs-base-def456"]
    table = ratchet(home, "list", "desk").output
    assert "failed" in table and "passed" in table and "orders" not in table


def test_the_page_is_copied_and_opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)) or len(opened) == 1)
    shown = ratchet(home, "show", "desk", "--output", str(home / "copy.html"), "--open")
    page = home / "artifacts" / "evaluations" / "desk-2-vs-base-def456" / "evaluation.html"
    assert shown.exit_code == 0 and (home / "copy.html").read_text() == page.read_text()
    assert opened == [page.as_uri()] and "No browser" not in shown.output
    assert "copy the page with --output" in ratchet(home, "show", "desk", "--open").output


def test_an_unknown_name_says_what_there_is(home: Path) -> None:
    unknown = ratchet(home, "show", "desk-3")
    assert unknown.exit_code == 1 and "no evaluation of 'desk-3'" in unknown.output and "desk-2" in unknown.output
    assert "A cycle makes one" in ratchet(home / "nowhere", "list", "desk").output


def test_a_report_that_cannot_be_read_is_left_out(home: Path) -> None:
    (home / "artifacts" / "evaluations" / "desk-2-vs-base-def456" / "evaluation.json").write_text("{}")
    assert "desk-2-vs-base-def456" not in ratchet(home, "list", "desk").output
