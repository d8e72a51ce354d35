"""Adapters that cannot be merged are refused by their configurations, in words and with a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.task_settings import Combination
from schemas.tasks import TaskSpec
from services.trainer.inputs import check_fusible, fetch_adapters
from shared.errors import StepImpossible
from shared.storage.artifacts import ArtifactStore

MODULES = ["q_proj", "v_proj"]


def spec(combination: str = "linear", *adapters: str) -> TaskSpec:
    return TaskSpec.model_validate({
        "name": "desk", "kind": "generation", "system_prompt": "Reply.", "base_model": "tiny",
        "training": {
            "method": "fusion", "target_modules": MODULES,
            "fusion": {"adapters": adapters or ("one", "two"), "combination": combination},
        },
    })  # fmt: skip


def config(r: int = 8, base: str = "tiny", modules: list[str] | None = None) -> dict[str, Any]:
    return {"r": r, "base_model_name_or_path": base, "target_modules": modules or MODULES}


def refusal(combination: str, one: dict[str, Any], two: dict[str, Any], max_rank: int = 16) -> StepImpossible:
    with pytest.raises(StepImpossible) as stopped:
        check_fusible({"one": one, "two": two}, spec(combination), max_rank)
    return stopped.value


@pytest.mark.parametrize("combination", list(Combination))
def test_adapters_of_one_rank_and_base_can_be_merged_in_every_way(combination: Combination) -> None:
    check_fusible({"one": config(), "two": config(modules=["q_proj"])}, spec(combination), 16)


@pytest.mark.parametrize("combination", ["svd", "cat"])
def test_ranks_may_differ_where_the_combination_makes_a_rank_of_its_own(combination: str) -> None:
    check_fusible({"one": config(4), "two": config(12)}, spec(combination), 16)


@pytest.mark.parametrize("combination", ["linear", "ties", "dare_linear"])
def test_different_ranks_are_refused_where_weights_are_added_one_by_one(combination: str) -> None:
    error = refusal(combination, config(4), config(8))
    assert error.reason == f"{combination} merges adapters of one rank, and theirs differ: one 4, two 8"
    assert "svd" in error.way_out


def test_ranks_that_add_up_to_more_than_the_fleet_serves_are_refused() -> None:
    error = refusal("cat", config(8), config(9))
    assert "rank is 17 (one 8, two 9), over the fleet's limit of 16" in error.reason
    assert "RATCHET_VLLM_MAX_LORA_RANK" in error.way_out
    assert "rank is 32" in refusal("svd", config(8), config(32)).reason


def test_an_adapter_of_another_base_model_or_of_more_modules_than_the_task_trains_is_refused() -> None:
    error = refusal("cat", config(), config(base="other"))
    assert error.reason == "two changes q_proj, v_proj of other, and desk trains q_proj, v_proj of tiny"
    error = refusal("cat", config(), config(modules=["q_proj", "lm_head"]))
    assert error.reason.startswith("two changes lm_head, q_proj of tiny") and "target_modules" in error.way_out


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path)
    for number, name in enumerate(("one", "two", "whole")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config(4 + number)))
        (folder / "manifest.json").write_text("{}")
        store.publish(folder, "models" if name == "whole" else "adapters", name)
    return store


def test_adapters_are_fetched_in_the_order_of_the_task_and_checked(store: ArtifactStore) -> None:
    folders = fetch_adapters(store, spec("cat", "two", "one", "two"), 16)
    assert [folder.name for folder in folders] == ["two", "one"]
    with pytest.raises(StepImpossible, match="over the fleet's limit of 8"):
        fetch_adapters(store, spec("cat", "two", "one"), 8)


@pytest.mark.parametrize("name", ["three", "whole"])
def test_what_is_no_adapter_in_the_store_is_refused(store: ArtifactStore, name: str) -> None:
    with pytest.raises(StepImpossible, match=f"is not in the artifact store: no artifact at .*/{name}") as missing:
        fetch_adapters(store, spec("cat", "one", name), 16)
    assert "training.fusion.adapters of desk" in missing.value.way_out
    assert "Models of their own" in missing.value.way_out
