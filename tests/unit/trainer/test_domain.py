from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.conversation import Message, Role
from schemas.datasets import DatasetBuilt, Example
from schemas.task_settings import TrainingSettings
from services.trainer.domain import check_labels, check_servable, check_start, job_name, out_of_memory, time_left
from shared.errors import StepImpossible

EXAMPLE = Path("schemas/examples/datasets.built.v1/built.json")
SPEC = DatasetBuilt.model_validate_json(EXAMPLE.read_bytes()).spec


@pytest.fixture
def dataset() -> DatasetBuilt:
    return DatasetBuilt.model_validate_json(EXAMPLE.read_bytes())


def changed(dataset: DatasetBuilt, **training: object) -> DatasetBuilt:
    data = json.loads(dataset.model_dump_json())
    data["spec"]["training"].update(training)
    return DatasetBuilt.model_validate(data)


def test_a_redelivered_dataset_has_the_same_job_name(dataset: DatasetBuilt) -> None:
    redelivered = DatasetBuilt.model_validate_json(dataset.model_dump_json())
    assert job_name(redelivered) == job_name(dataset)
    assert job_name(dataset).startswith(dataset.dataset_id)


def test_other_settings_or_another_cycle_have_another_job_name(dataset: DatasetBuilt) -> None:
    next_week = dataset.model_copy(update={"cycle_id": "support-desk-20261130-030000"})
    names = {job_name(dataset), job_name(changed(dataset, seed=21)), job_name(next_week)}
    assert len(names) == 3


def test_a_rank_over_the_fleets_limit_is_refused_with_a_way_out(dataset: DatasetBuilt) -> None:
    check_servable(dataset.spec, 16)
    with pytest.raises(StepImpossible, match="rank 32 is over the fleet's limit of 16") as refused:
        check_servable(changed(dataset, r=32).spec, 16)
    assert "--max-lora-rank" in refused.value.way_out


@pytest.mark.parametrize(
    "training", [{"method": "full"}, {"dora": True}, {"method": "fusion", "fusion": {"adapters": ["one", "two"]}}]
)
def test_the_limit_is_of_adapters_whose_rank_the_task_sets(dataset: DatasetBuilt, training: dict[str, object]) -> None:
    check_servable(changed(dataset, r=32, **training).spec, 16)


@pytest.mark.parametrize(
    ("done", "total", "seconds", "words"),
    [(0, 10, 5.0, ""), (5, 10, 50.0, "50 s left"), (1, 10, 20.0, "3 min 0 s left"), (10, 10, 9.0, "0 s left")],
)
def test_the_time_left_follows_the_pace(done: int, total: int, seconds: float, words: str) -> None:
    assert time_left(done, total, seconds) == words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "none is left"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: tried"), "CPUAlloc"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nSee docs"), "Tried to allocate 2 GiB$"),
    ],
)
def test_an_error_of_memory_says_what_to_lower(error: Exception, words: str) -> None:
    explained = out_of_memory(error, SPEC)
    assert explained is not None and re.search(words, explained.reason)
    assert "training.batch_size" in explained.way_out and "qlora" in explained.way_out


def test_another_error_is_none_of_memory() -> None:
    assert out_of_memory(RuntimeError("shapes do not match"), SPEC) is None


def test_a_label_that_the_task_does_not_have_any_more_stops_the_training() -> None:
    def answered(label: str) -> Example:
        messages = (Message(role=Role.USER, content="?"), Message(role=Role.ASSISTANT, content=label))
        return Example(example_id="e", messages=messages, group="g", prediction_ids=(), correction_ids=())

    check_labels([answered(SPEC.labels[0])], SPEC)
    with pytest.raises(StepImpossible, match="label set changed: the data set has gone") as stopped:
        check_labels([answered(SPEC.labels[0]), answered("gone")], SPEC)
    assert "ratchet cycle" in stopped.value.way_out


@pytest.mark.parametrize(
    ("field", "value"),
    [("r", 4), ("lora_alpha", 1), ("base_model_name_or_path", "other"), ("target_modules", ["q_proj"])],
)
def test_a_training_goes_on_from_an_adapter_of_the_same_form_alone(tmp_path: Path, field: str, value: object) -> None:
    training = SPEC.training
    config = {
        "base_model_name_or_path": SPEC.base_model, "r": training.r, "lora_alpha": training.alpha,
        "target_modules": list(training.target_modules),
    }  # fmt: skip
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(config))
    check_start(path, SPEC)
    path.write_text(json.dumps(config | {field: value}))
    with pytest.raises(StepImpossible, match=field) as stopped:
        check_start(path, SPEC)
    assert "training.start_from" in stopped.value.way_out


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"method": "fusion", "fusion": {"adapters": ["one", "one"]}}, "name two or more"),
        ({"method": "full", "dora": True}, "training.dora is of LoRA and QLoRA"),
        ({"method": "full", "sweep_hours": 1}, "sweep_hours searches settings of LoRA"),
        (
            {"method": "fusion", "fusion": {"adapters": ["one", "two"]}, "preferences": {"method": "dpo"}},
            "fusion has no steps",
        ),
    ],
)
def test_settings_that_the_method_has_no_use_for_are_refused(training: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainingSettings.model_validate(training)
