"""A candidate that is a whole model: asked where such models are served, checked as one, and without probes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.conversation import Message, Role
from services.evaluator import job as job_module
from services.evaluator.domain import Question
from services.evaluator.job import _ask_both
from services.evaluator.job_input import EvaluationJob
from services.evaluator.verdict import Asked, Extras, evaluated_event, evaluation_report
from shared.errors import DependencyUnavailable, StepImpossible
from shared.model.inference import Completion, NotServed
from shared.storage.artifacts import ArtifactStore
from tests.unit.evaluator.reports import NOON, approaches
from tests.unit.evaluator.test_must_pass import RIGHT, TRAINED, WRONG, job
from tests.unit.shared.test_adapter_files import write_model

MODEL, MODELS, VLLM = "support-desk-4f2a90c1", ("http://models",), ("http://vllm",)
ROWS = [Question((Message(role=Role.USER, content=f"where is it {n}?"),), RIGHT) for n in range(12)]


class Engines:
    """Stands for all servers: which were asked for what, and how long the caller would wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.first_wait = 0.0
        engines = self

        class Client:
            def __init__(self, urls: tuple[str, ...], seconds: float, key: str) -> None:
                (self._url,), self._seconds = urls, seconds

            async def complete(self, model: str, messages: Any, **how: Any) -> Completion:
                if error is not None:
                    raise error
                engines.first_wait = engines.first_wait or self._seconds
                engines.asked.append((self._url, model))
                return Completion(RIGHT if model == MODEL else WRONG, -0.1, 1, 5, "stop", 1.0)

            async def context_tokens(self) -> int:
                return 2048

            async def serve_adapter(self, name: str, folder: str) -> None:
                raise AssertionError(f"{name} is no adapter")

            async def close(self) -> None: ...

        monkeypatch.setattr(job_module, "InferenceClient", Client)


@pytest.fixture
def model_job(tmp_path: Path) -> EvaluationJob:
    (tmp_path / "artifacts" / "models").mkdir(parents=True)
    folder = write_model(tmp_path / "artifacts" / "models" / MODEL)
    trained = TRAINED.model_copy(update={"adapter": MODEL, "kind": "model", "uri": str(folder), "rank": None})
    return job(tmp_path).model_copy(update={"trained": trained, "vllm": VLLM, "models": MODELS})


async def ask(the_job: EvaluationJob, folder: Path) -> tuple[Asked, Any]:
    store = ArtifactStore(the_job.artifacts, the_job.cache)
    return await _ask_both(the_job, store, ROWS, [], folder, lambda *_: None)


async def test_the_model_is_asked_where_models_are_served_and_production_where_it_was(
    model_job: EvaluationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = Engines(monkeypatch)
    asked, probes = await ask(model_job, tmp_path)
    assert probes is None
    assert set(engines.asked) == {("http://models", MODEL), ("http://vllm", TRAINED.base_model)}
    assert engines.asked[0] == ("http://models", MODEL) and engines.first_wait > 300, "it is woken with patience"
    assert asked.candidate.answers == (RIGHT,) * len(ROWS) and asked.production.answers == (WRONG,) * len(ROWS)
    assert asked.adversarial is not None and set(asked.adversarial.candidate.answers) == {RIGHT}


async def test_its_event_says_that_it_is_a_model(
    model_job: EvaluationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Engines(monkeypatch)
    asked, _ = await ask(model_job, tmp_path)
    report = evaluation_report(model_job.trained, None, "job", asked, Extras(approaches(len(ROWS))), NOON)
    event = evaluated_event(model_job.trained, report, "/report")
    assert (event.kind, event.adapter) == ("model", MODEL)
    assert evaluated_event(TRAINED, report, "/report").kind == "adapter"


async def test_a_folder_that_is_no_plain_model_is_refused_before_anything_is_asked(
    model_job: EvaluationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = Engines(monkeypatch)
    folder = Path(model_job.trained.uri)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoModel": "evil.py"}}))
    with pytest.raises(StepImpossible, match=f"the model {MODEL} cannot be served: config.json has auto_map"):
        await ask(model_job, tmp_path)
    assert engines.asked == []


async def test_a_server_that_does_not_know_it_ends_the_step_and_one_that_is_busy_does_not(
    model_job: EvaluationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Engines(monkeypatch, NotServed("http://models answered 404"))
    with pytest.raises(StepImpossible, match="cannot be served") as refused:
        await ask(model_job, tmp_path)
    assert "RATCHET_MODELS" in refused.value.way_out
    Engines(monkeypatch, DependencyUnavailable("two others are awake and busy"))
    with pytest.raises(DependencyUnavailable, match="awake and busy"):
        await ask(model_job, tmp_path)


async def test_a_model_that_is_gone_ends_the_step(
    model_job: EvaluationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Engines(monkeypatch)
    (Path(model_job.trained.uri) / "manifest.json").unlink()
    with pytest.raises(StepImpossible, match="no artifact at"):
        await ask(model_job, tmp_path)
