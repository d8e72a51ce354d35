"""`ratchet advise` on a real lake, with an evaluation in the artifact store."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deploy.cli.app import app
from schemas.approaches import ApproachTable
from schemas.base import Variant, utc_now
from schemas.lake import PREDICTIONS
from schemas.predictions import Usage
from services.evaluator.report.publish import publish_report
from services.prediction_log.storage import DeltaLake
from shared.model.prices import SHIPPED
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from tests.unit.evaluator.reports import classification
from tests.unit.prediction_log.deliveries import delivery, prediction

EVALUATED = json.loads(Path("schemas/examples/adapters.evaluated.v1/passed.json").read_text())
TASK = """
name: support-desk
kind: classification
base_model: SmolLM2-135M-Instruct
system_prompt: Say.
labels: [delivery, refund]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a task that was evaluated once."""
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    monkeypatch.delenv("RATCHET_PRICES_FILE", raising=False)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "support-desk.yaml").write_text(TASK)
    approaches = ApproachTable.model_validate(EVALUATED["approaches"])
    report = classification(4, 240).model_copy(update={"task": "support-desk", "approaches": approaches})
    publish_report(report, ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache"), tmp_path / "made")
    return tmp_path


def log_answers(count: int = 60, external: str | None = None) -> None:
    """Log answers of the base model, or of an external one that reports no latency."""
    now = utc_now()
    made = [prediction(f"p{n}", at=now - timedelta(days=n % 3, minutes=1)) for n in range(count)]
    if external is not None:
        usage = Usage(prompt_tokens=1_500, answer_tokens=300)
        reported = {"model": external, "variant": Variant.EXTERNAL, "usage": usage, "latency_ms": 0.0}
        answered = [event.answers[0].model_copy(update={"tokens": 300}) for event in made]
        made = [e.model_copy(update={**reported, "answers": (a,)}) for e, a in zip(made, answered, strict=True)]
    lake = DeltaLake(Settings.load().lake_uri)
    lake.append(PREDICTIONS, [delivery(event, n) for n, event in enumerate(made)])


def ratchet(*words: str) -> Result:
    return CliRunner().invoke(app, ["advise", *words], env={"COLUMNS": "220"})


def as_json(*words: str) -> dict[str, Any]:
    result = ratchet(*words, "--json")
    assert result.exit_code == 0, result.output
    read: dict[str, Any] = json.loads(result.stdout)
    return read


def conditions(given: dict[str, Any]) -> dict[str, bool | None]:
    return {reading["condition"]: reading["holds"] for reading in given["readings"]}


def cost(given: dict[str, Any]) -> dict[str, Any]:
    (found,) = (reading for reading in given["readings"] if reading["condition"] == "cost")
    return dict(found)


def test_what_is_in_the_log_is_measured_and_the_last_evaluation_is_shown(home: Path) -> None:
    log_answers()
    given = as_json("support-desk", "--cost-budget", "0.000001")
    assert given["answers_read"] == 60
    assert conditions(given)["strict format"] is conditions(given)["cost"] is True
    assert given["recommendation"] == "fine_tune"
    assert given["reasons"][0].startswith(
        "The last evaluation: A linear classifier on sentence embeddings does as well"
    )
    assert "production" in ratchet("support-desk").stdout


def test_the_cost_of_a_month_is_production_s_measured_cost_at_today_s_volume(home: Path) -> None:
    """600,000 answers cost 13.90 in the evaluation; 60 in two days are 900 a month."""
    log_answers()
    given = as_json("support-desk", "--cost-budget", "1")
    assert "cost 0.021 USD" in cost(given)["detail"] and "1.00 USD" in cost(given)["detail"]
    assert cost(given)["holds"] is False


def test_answers_of_an_external_model_are_priced_by_its_own_price_and_one_without_is_asked_for_by_name(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 answers in two days are 900 a month, of 1,500 and 300 tokens each."""
    log_answers(external="big/model")
    given = as_json("support-desk", "--cost-budget", "5")
    assert cost(given)["holds"] is None
    assert "`big/model` (RATCHET_PRICES_FILE)" in cost(given)["detail"]
    listed = "  big/model: {million_prompt_tokens: 5, million_answer_tokens: 15, as_of: 2026-11-26}\n"
    (home / "prices.yaml").write_text(SHIPPED.read_text() + listed)
    monkeypatch.setenv("RATCHET_PRICES_FILE", str(home / "prices.yaml"))
    given = as_json("support-desk", "--cost-budget", "5")
    assert cost(given)["holds"] is True
    assert "cost 10.80 USD" in cost(given)["detail"]


def test_a_task_that_nothing_is_known_of_gets_advice_that_says_so(home: Path) -> None:
    shutil.rmtree(home / "artifacts")
    result = ratchet("support-desk")
    assert result.exit_code == 0
    assert "Few-shot prompts with structured output first" in result.stdout
    assert "Not known, and counted as no: domain words, latency, cost, examples." in result.stdout
    assert "Say it with --latency-budget MS" in result.stdout


def test_an_option_says_what_cannot_be_measured(home: Path) -> None:
    given = as_json("support-desk", "--need", "knowledge", "--domain-words")
    assert given["recommendation"] == "retrieval_and_fine_tune"
    assert conditions(given)["domain words"] is True


def test_a_task_that_is_not_there_and_prices_that_cannot_be_read_are_errors_with_a_way_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = ratchet("nothing")
    assert (unknown.exit_code, "ratchet tasks apply FILE" in unknown.stderr) == (1, True)
    monkeypatch.setenv("RATCHET_PRICES_FILE", str(home / "none.yaml"))
    broken = ratchet("support-desk")
    assert (broken.exit_code, "none.yaml cannot be read" in broken.stderr) == (1, True)


def test_help_teaches_the_rule() -> None:
    shown = " ".join(ratchet("--help").stdout.split())
    for said in ("Two or more: fine-tune", "None: prompt", "a larger model", "--latency-budget", "--json"):
        assert said in shown, said
