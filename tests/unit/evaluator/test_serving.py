"""The evaluator checks an adapter's files before it asks an engine for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.evaluator import job as job_module
from services.evaluator.job import _ask_both
from services.evaluator.job_input import EvaluationJob
from shared.errors import StepImpossible
from shared.storage.artifacts import ArtifactStore
from tests.unit.evaluator.test_must_pass import TRAINED
from tests.unit.shared.adapter_folders import write_adapter


class Asked(Exception):
    """The engine was asked for production's adapter, too: the end of the test."""


@pytest.mark.parametrize(
    ("candidate", "production", "reason"),
    [
        ({"r": 17}, {}, "does not serve the adapter a: its rank 17 is over the engine's limit of 16"),
        ({"target_modules": ["q_proj", "lm_head"]}, {}, "it changes lm_head, which the task does not train"),
        ({}, {"base_model_name_or_path": "another"}, "does not serve the adapter old: it was trained on 'another'"),
        ({}, {"target_modules": ["q_proj", "fc1"]}, None),
    ],
)
async def test_no_engine_is_asked_for_an_adapter_that_is_not_as_the_trainer_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidate: Any, production: Any, reason: str | None
) -> None:
    """Production's may change modules that the task does not train any more."""
    asked: list[str] = []

    class Vllm:
        def __init__(self, *options: object) -> None: ...

        async def close(self) -> None: ...

        async def serve_adapter(self, name: str, folder: str) -> None:
            asked.append(name)
            if name == "old":
                raise Asked

    monkeypatch.setattr(job_module, "InferenceClient", Vllm)
    store = ArtifactStore(str(tmp_path), tmp_path / "cache")
    for name, config in (("a", candidate), ("old", production)):
        write_adapter(tmp_path / "adapters" / name, TRAINED.base_model, **config)
    job = EvaluationJob(
        trained=TRAINED.model_copy(update={"adapter": "a", "uri": store.address("adapters", "a")}), production="old",
        vllm=(), artifacts=str(tmp_path), cache=tmp_path, slots_folder=tmp_path, slots=1, concurrency=1,
        timeout_seconds=1.0, max_rank=16,
        embedder=tmp_path, lake=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(StepImpossible if reason else Asked) as refused:
        await _ask_both(job, store, [], [], tmp_path, lambda *_: None)
    assert (reason or "") in str(refused.value)
    assert asked == ([] if candidate else ["a"] if reason else ["a", "old"])
