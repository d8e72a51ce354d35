from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.conversation import Message, Role
from schemas.golden import GoldenManifest, GoldenRow
from schemas.tasks import TaskSpec
from shared.errors import StepImpossible
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import golden_set, publish_golden_set, read_golden_set

ROWS = [
    GoldenRow(
        row_id=f"g-{n}", must_pass=n == 1,
        messages=(Message(role=Role.USER, content=f"question {n}"), Message(role=Role.ASSISTANT, content="refund")),
    )
    for n in range(3)
]  # fmt: skip
SPEC = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": ["refund", "other"]}
)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


def spec_of(rows: list[GoldenRow]) -> TaskSpec:
    return SPEC.model_copy(update={"golden_set": golden_set("desk", rows)})


def test_a_set_is_read_as_it_was_published_and_has_one_id_in_any_order(store: ArtifactStore) -> None:
    address = publish_golden_set(store, "desk", ROWS)
    assert publish_golden_set(store, "desk", ROWS[::-1]) == address
    assert read_golden_set(store, spec_of(ROWS[::-1])) == tuple(ROWS)
    manifest = GoldenManifest.model_validate_json((Path(address) / "manifest.json").read_bytes())
    assert (manifest.task, manifest.rows, manifest.must_pass, manifest.parts) == ("desk", 3, 1, {"sample": 3})
    assert golden_set("desk", ROWS) == golden_set("desk", ROWS[::-1])
    assert golden_set("other", ROWS) != golden_set("desk", ROWS)


def test_a_task_without_rows_has_no_golden_set(store: ArtifactStore) -> None:
    assert golden_set("desk", []) is None
    assert read_golden_set(store, SPEC) == ()


def test_a_set_that_is_not_in_the_store_ends_the_step_with_its_address(store: ArtifactStore) -> None:
    with pytest.raises(StepImpossible, match=r"is not in the artifact store, at .*/golden/desk-") as caught:
        read_golden_set(store, spec_of(ROWS))
    assert "restarted scheduler" in caught.value.way_out


@pytest.mark.parametrize("damage", [b"", b"{oops\n", b"\xff\n"])
def test_a_set_that_was_changed_after_it_was_published_ends_the_step(store: ArtifactStore, damage: bytes) -> None:
    file = Path(publish_golden_set(store, "desk", ROWS)) / "golden.jsonl"
    file.write_bytes(damage)
    with pytest.raises(StepImpossible, match="not those that were published"):
        read_golden_set(store, spec_of(ROWS))
    row = json.dumps(ROWS[0].model_dump(mode="json"))
    file.write_text(row + "\n")  # A row that is valid and not the published one.
    with pytest.raises(StepImpossible, match="not those that were published"):
        read_golden_set(store, spec_of(ROWS))
