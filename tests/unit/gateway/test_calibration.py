from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from schemas.adapters import CALIBRATION_FILE, CALIBRATIONS, Calibration
from schemas.tasks import TaskSpec
from services.gateway.routing.calibration import CalibrationCache
from shared.storage.artifacts import MANIFEST, ArtifactStore
from shared.storage.calibrations import AdapterCalibration

FOUND = Calibration(
    name="desk-1-abc", kind="temperature", temperature=2.0, answers=80, ece_before=0.1, ece_after=0.04
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


def publish(
    store: ArtifactStore, folder: Path, adapter: str, content: str = "", files: Mapping[str, bytes] | None = None
) -> None:
    made = folder / f"made-{adapter}"
    made.mkdir()
    for name, data in (files or {}).items():
        (made / name).write_bytes(data)
    (made / CALIBRATION_FILE).write_text(content or FOUND.model_dump_json())
    (made / MANIFEST).write_text("{}")
    store.publish(made, CALIBRATIONS, adapter)


async def test_a_calibration_is_cached_after_a_look_up(store: ArtifactStore, tmp_path: Path) -> None:
    publish(store, tmp_path, "desk-1")
    calibrations = CalibrationCache(store)
    assert calibrations.get("desk-1") is None
    await calibrations.look_up()
    assert calibrations.get("desk-1") == AdapterCalibration(FOUND)


async def test_the_base_model_and_an_adapter_without_one_have_none(store: ArtifactStore) -> None:
    calibrations = CalibrationCache(store)
    assert calibrations.get(None) is None
    assert calibrations.get("desk-1") is None
    await calibrations.look_up()
    assert calibrations.get("desk-1") is None


async def test_a_calibration_published_later_is_found(store: ArtifactStore, tmp_path: Path) -> None:
    calibrations = CalibrationCache(store, retry_seconds=0.0)
    calibrations.get("desk-1")
    await calibrations.look_up()
    publish(store, tmp_path, "desk-1")
    await calibrations.look_up()
    assert calibrations.get("desk-1") == AdapterCalibration(FOUND)


async def test_a_missing_calibration_is_not_looked_up_all_the_time(store: ArtifactStore, tmp_path: Path) -> None:
    calibrations = CalibrationCache(store, retry_seconds=60.0)
    calibrations.get("desk-1")
    await calibrations.look_up()
    publish(store, tmp_path, "desk-1")
    await calibrations.look_up()
    assert calibrations.get("desk-1") is None


async def test_a_damaged_calibration_does_not_affect_others(
    store: ArtifactStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, tmp_path, "torn", content="{")
    publish(store, tmp_path, "desk-1")
    calibrations = CalibrationCache(store)
    for adapter in ("torn", "desk-1"):
        calibrations.get(adapter)
    await calibrations.look_up()
    assert calibrations.get("torn") is None
    assert calibrations.get("desk-1") == AdapterCalibration(FOUND)
    assert "the calibration of torn cannot be read" in caplog.text


DESK = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Intent?", "labels": ["refund", "delivery"]}
)
