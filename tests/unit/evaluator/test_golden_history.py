"""The evaluator keeps what adapters got right of the golden sets, and which of them were promoted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.rollouts import RolloutChanged
from services.evaluator.domain import golden_key
from services.evaluator.golden_history import golden_result, past_results, publish_result, record_promotion
from services.evaluator.handlers import Handlers
from services.evaluator.settings import EvaluatorSettings
from shared.jobs import Jobs
from shared.kafka.latest_by_key import LatestByKey
from shared.storage.artifacts import ArtifactStore
from tests.unit.evaluator.arms import compared, marked, spec

BASE = spec().base_model
GOLDEN = marked(compared(4, range(3), range(2))).questions
PROMOTED = json.loads(Path("schemas/examples/rollouts.changed.v1/promoted.json").read_bytes())


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


def keep(store: ArtifactStore, folder: Path, adapter: str, right: list[bool], task: str = "desk") -> None:
    result = golden_result(spec().model_copy(update={"name": task}), adapter, GOLDEN, right)
    publish_result(store, result, f"{task}-set")


def test_only_what_promoted_adapters_of_the_task_got_right_counts(store: ArtifactStore, tmp_path: Path) -> None:
    keep(store, tmp_path, "desk-1", [True, True, True, False])
    keep(store, tmp_path, "desk-2", [True] * 4)
    keep(store, tmp_path, "other-1", [True] * 4, task="other")
    assert past_results(store, "desk", BASE) == []
    record_promotion(store, "desk", "desk-1")
    record_promotion(store, "desk", "desk-1")
    record_promotion(store, "other", "other-1")
    (found,) = past_results(store, "desk", BASE)
    assert found.adapter == "desk-1"
    assert [found.right[golden_key(question, spec())] for question in GOLDEN] == [True, True, True, False]


def test_what_adapters_of_another_base_model_got_right_is_no_bar(store: ArtifactStore, tmp_path: Path) -> None:
    keep(store, tmp_path, "desk-1", [True] * 4)
    record_promotion(store, "desk", "desk-1")
    assert past_results(store, "desk", "a-smaller-one") == []


def test_an_adapters_first_result_on_a_golden_set_stays(store: ArtifactStore, tmp_path: Path) -> None:
    record_promotion(store, "desk", "desk-1")
    keep(store, tmp_path, "desk-1", [True] * 4)
    keep(store, tmp_path, "desk-1", [False] * 4)
    assert sum(past_results(store, "desk", BASE)[0].right.values()) == 4


async def test_a_promotion_is_recorded_when_the_deployer_reports_it_and_other_stages_are_not(tmp_path: Path) -> None:
    settings = EvaluatorSettings(home=tmp_path)
    table: LatestByKey[RolloutChanged] = LatestByKey("rollouts.changed.v1")

    class Silent:
        async def publish(self, event: object) -> None:
            raise AssertionError(event)

    handlers = Handlers(settings, Jobs(settings.jobs_folder, "services.evaluator.job"), Silent(), table)
    store = ArtifactStore(settings.artifacts_uri, tmp_path / "cache")
    for stage in ("shadow", "canary", "rolled_back"):
        await handlers.on_rollout(RolloutChanged.model_validate({**PROMOTED, "stage": stage}))
    assert store.names("promotions") == []
    await handlers.on_rollout(RolloutChanged.model_validate(PROMOTED))
    assert store.names("promotions") == [PROMOTED["primary_adapter"]]


def test_two_dashes_in_the_name_of_a_task_hide_no_result(store: ArtifactStore, tmp_path: Path) -> None:
    keep(store, tmp_path, "desk--eu-1", [True] * 4, task="desk--eu")
    keep(store, tmp_path, "desk--eu-1--2", [True] * 4, task="desk--eu")
    record_promotion(store, "desk--eu", "desk--eu-1")
    assert [found.adapter for found in past_results(store, "desk--eu", BASE)] == ["desk--eu-1"]
