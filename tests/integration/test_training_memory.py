"""A training that memory does not suffice for is refused by the rows that it would read, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas.conversation import Message, Role
from schemas.datasets import Example
from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.trainer import recipe
from services.trainer.domain import TrainingRequest, TrainingRow
from services.trainer.memory import GIB
from services.trainer.plan import ModelShape, resolve
from services.trainer.recipe import methods, resources
from shared.errors import StepImpossible
from tests.integration.tiny_model import make_tiny_model

SHAPE = ModelShape("llama", 30, 576, 1536, 9, 3, 64, 49152, is_tied=True, is_quantised=False)


def request(base: str = "tiny", **training: Any) -> TrainingRequest:
    settings = TrainingSettings.model_validate({"epochs": 1, "batch_size": 4, "max_length": 512} | training)
    spec = TaskSpec(
        name="desk", kind=TaskKind.CLASSIFICATION, base_model="tiny", system_prompt="Label it.", labels=("a", "b"),
        training=settings,
    )  # fmt: skip
    return TrainingRequest(spec=spec, base=base, threads=1)


def row(length: int, number: int = 0) -> TrainingRow:
    """A row that has its first ten tokens in common with others."""
    return TrainingRow((1,) * 10 + (number,) * (length - 10), start=length - 3)


def rows_of(length: int, count: int) -> list[TrainingRow]:
    return [row(length, number) for number in range(2, count + 2)]


def example(number: int) -> Example:
    messages = tuple(
        Message(role=role, content=text)
        for role, text in ((Role.SYSTEM, "Label it."), (Role.USER, f"text {number}"), (Role.ASSISTANT, "a"))
    )
    return Example(example_id=f"e{number}", messages=messages, group=f"e{number}", prediction_ids=(), correction_ids=())


def test_a_training_without_enough_memory_loads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model(tmp_path / "tiny")
    monkeypatch.setattr(resources, "available_memory", lambda: 1_000)
    monkeypatch.setattr(methods, "load_base", lambda *_: pytest.fail("the base model was loaded"))
    wanted = request(str(tmp_path / "tiny"))
    with pytest.raises(StepImpossible, match="training tiny would take") as refused:
        recipe.train(wanted, [example(n) for n in range(8)], tmp_path, lambda *_, **__: None)
    assert "ratchet train desk --estimate" in refused.value.way_out


def test_what_the_process_has_already_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, rows = request(), [row(20), row(30, 1)]
    plan = resolve(wanted.settings, SHAPE, 2)
    needed = resources.memory_needed(wanted, SHAPE, plan, rows)
    monkeypatch.setattr(resources, "available_memory", lambda: needed.total - needed.parts["libraries"])
    resources.check_memory_for(wanted, SHAPE, plan, rows)
    monkeypatch.setattr(resources, "available_memory", lambda: needed.total - needed.parts["libraries"] - GIB / 1024)
    with pytest.raises(StepImpossible):
        resources.check_memory_for(wanted, SHAPE, plan, rows)


def test_the_estimate_goes_by_the_longest_pass_that_the_rows_make() -> None:
    """Of short rows a step is one pass; of long ones it is divided, and a pass has no more than `batch_size` allows."""

    def activations(rows: list[TrainingRow], **training: Any) -> float:
        wanted = request(**training)
        return resources.memory_needed(wanted, SHAPE, resolve(wanted.settings, SHAPE, len(rows)), rows).parts[
            "activations"
        ]

    short, long = rows_of(20, 40), rows_of(500, 40)
    assert activations(short) < activations([*short[:-1], row(400)])
    assert activations(long) == activations(long[:4]), "a step reads four"
    assert activations(short) == activations(short[:4]), "also where a pass has room for more"
    divided = activations(long, accumulation=8)
    assert divided == pytest.approx(activations(long), rel=0.01), "eight passes, one at a time"
