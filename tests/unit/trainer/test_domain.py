from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.datasets import DatasetBuilt
from services.trainer.domain import check_servable, draw_by_weight, job_name, time_left
from shared.errors import StepImpossible

EXAMPLE = Path("schemas/examples/datasets.built.v1/built.json")


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
    ("done", "total", "seconds", "words"),
    [(0, 10, 5.0, ""), (5, 10, 50.0, "50 s left"), (1, 10, 20.0, "3 min 0 s left"), (10, 10, 9.0, "0 s left")],
)
def test_the_time_left_follows_the_pace(done: int, total: int, seconds: float, words: str) -> None:
    assert time_left(done, total, seconds) == words


def test_rows_are_drawn_as_often_as_their_weights_say() -> None:
    weights = [1.0, 0.2, 2.5, 0.3]
    assert draw_by_weight([1.0] * 5, 0.7) == [0, 1, 2, 3, 4]
    starts = [number / 1_000 for number in range(1_000)]
    draws = [draw_by_weight(weights, start) for start in starts]
    assert {len(draw) for draw in draws} == {4}
    means = [sum(draw.count(row) for draw in draws) / len(draws) for row in range(4)]
    assert means == pytest.approx(weights, abs=0.01)
    assert {draw.count(2) for draw in draws} == {2, 3}


def test_a_start_close_to_one_draws_an_existing_row() -> None:
    assert max(draw_by_weight([0.1] * 7, 1.0 - 1e-16)) == 6
