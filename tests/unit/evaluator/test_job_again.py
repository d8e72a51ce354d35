"""An evaluation asks about held-out rows; killed at its very end, and run again, it says what it has published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from schemas.adapters import AdapterEvaluated, Probe, Probes
from schemas.approaches import ApproachTable
from schemas.conversation import Message, Role
from schemas.datasets import Example
from schemas.evaluation import EVALUATION_FILE, EvaluationReport
from services.evaluator import job as evaluation_job
from services.evaluator.domain import Question
from services.evaluator.job import evaluate_adapter
from services.evaluator.recipe import ArmAnswers
from services.evaluator.rivals import run
from services.evaluator.verdict import Asked
from shared.errors import StepImpossible
from shared.jobs import Progress
from shared.storage.artifacts import ArtifactStore
from tests.unit.evaluator.reports import approaches
from tests.unit.evaluator.test_must_pass import RIGHT, TRAINED, WRONG, job

ROWS = 30


def test_the_event_of_a_repeated_evaluation_agrees_with_the_report_that_was_published_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that had failed may be answered now, and another adapter be promoted: the two would contradict."""
    asked = (Message(role=Role.USER, content="q"), Message(role=Role.ASSISTANT, content=RIGHT))
    rows = [
        Example(example_id=f"e{n}", messages=asked, group=f"g{n}", prediction_ids=(), correction_ids=())
        for n in range(ROWS)
    ]
    data = tmp_path / "data"
    data.mkdir()
    for name in ("eval.jsonl", "train.jsonl"):
        (data / name).write_text("".join(row.model_dump_json() + "\n" for row in rows))
    (data / "manifest.json").write_text("{}")
    uri = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache").publish(data, "datasets", "d")
    spec = TRAINED.spec.model_copy(update={"golden_set": None})
    trained = TRAINED.model_copy(update={"dataset_uri": uri, "spec": spec})
    written = job(tmp_path).model_copy(update={"trained": trained}).model_dump_json().encode()

    async def rivals(*arguments: object) -> ApproachTable:
        return approaches(ROWS)

    def evaluated(answer: str) -> AdapterEvaluated:
        async def ask(
            the_job: object, store: object, evaluation: Sequence[Question], *more: object
        ) -> tuple[Asked, Probes]:
            given, right = (ArmAnswers(answers=(text,) * ROWS, latencies_ms=()) for text in (answer, RIGHT))
            probe = Probe(messages=asked[:1], adapter={"a": -0.1}, base={"b": -0.1})
            probes = Probes(adapter=trained.adapter, base_model=trained.base_model, probes=(probe,), rounding=0.0)
            return Asked(evaluation, [], given, right), probes

        monkeypatch.setattr(evaluation_job, "_ask_both", ask)
        return evaluate_adapter(written, tmp_path / "job", Progress(tmp_path))

    monkeypatch.setattr(run, "compare_rivals", rivals)
    first, again = evaluated(WRONG), evaluated(RIGHT)
    report = EvaluationReport.model_validate_json((Path(str(again.report)) / EVALUATION_FILE).read_bytes())
    assert (first.event_id, first.verdict) == (again.event_id, "failed")
    assert (report.verdict, report.gates) == (again.verdict, again.gates)


def test_only_held_out_rows_are_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what the candidate is compared and calibrated on: of the rows that it was trained on it is too sure."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("eval", "train"):
        asked = (Message(role=Role.USER, content=name), Message(role=Role.ASSISTANT, content=RIGHT))
        row = Example(example_id=name, messages=asked, group=name, prediction_ids=(), correction_ids=())
        (data / f"{name}.jsonl").write_text(row.model_dump_json() + "\n")
    (data / "manifest.json").write_text("{}")
    uri = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache").publish(data, "datasets", "d")
    spec = TRAINED.spec.model_copy(update={"golden_set": None})
    trained = TRAINED.model_copy(update={"dataset_uri": uri, "spec": spec})
    written = job(tmp_path).model_copy(update={"trained": trained}).model_dump_json().encode()

    async def ask(the_job: object, store: object, evaluation: Sequence[Question], *more: object) -> None:
        raise StepImpossible(f"asked about {[question.row_id for question in evaluation]}", "")

    monkeypatch.setattr(evaluation_job, "_ask_both", ask)
    with pytest.raises(StepImpossible, match=r"asked about \['eval'\]"):
        evaluate_adapter(written, tmp_path / "job", Progress(tmp_path))
