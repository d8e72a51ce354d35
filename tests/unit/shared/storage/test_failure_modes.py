"""Failure modes are published whole, without a word of anyone, and read back as each prediction's mode."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.failures import MEMBERS_FILE, MODES_FILE, ExemplarSource, FailureMode
from shared.errors import StepImpossible
from shared.storage.artifacts import ArtifactStore
from shared.storage.failure_modes import publish_modes, read_members

SOURCE = ExemplarSource(prediction_id="p1", user_hash="u1", predicted_at=datetime(2026, 11, 2, 12, tzinfo=UTC))
MODE = FailureMode(
    mode_id="mode-1", name="parcel", words=("parcel",), exemplars=("what ann wrote",), sources=(SOURCE,), size=2,
    share=1.0,
)  # fmt: skip
MEMBERS = {f"p{n}": f"mode-{n % 1_500}" for n in range(20_000)}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


def test_the_mode_of_each_prediction_reads_back(store: ArtifactStore) -> None:
    address = publish_modes(store, "desk", [MODE] * 1_500, MEMBERS)
    assert read_members(store, address) == MEMBERS
    assert read_members(store, None) == {}


def test_the_same_modes_have_the_same_address_in_any_order_of_members(store: ArtifactStore) -> None:
    backwards = dict(reversed(MEMBERS.items()))
    assert publish_modes(store, "desk", [MODE], MEMBERS) == publish_modes(store, "desk", [MODE], backwards)
    assert publish_modes(store, "desk", [MODE], MEMBERS) != publish_modes(store, "other", [MODE], MEMBERS)


def test_no_text_and_no_user_of_a_prediction_is_in_the_files(store: ArtifactStore) -> None:
    folder = store.fetch(publish_modes(store, "desk", [MODE], {"p1": "mode-1"}))
    texts = [path.read_text() for path in folder.iterdir()]
    assert not any("ann wrote" in text or "u1" in text for text in texts)
    assert FailureMode.model_validate_json((folder / MODES_FILE).read_text()).words == ("parcel",)


def test_a_folder_that_is_gone_or_damaged_stops_the_step_with_the_way_out(store: ArtifactStore) -> None:
    with pytest.raises(StepImpossible, match="not in the artifact store"):
        read_members(store, store.address("failures", "desk-1"))
    address = publish_modes(store, "desk", [MODE], {"p1": "mode-1"})
    (store.fetch(address) / MEMBERS_FILE).write_text("{")
    with pytest.raises(StepImpossible, match="cannot be read"):
        read_members(store, address)
