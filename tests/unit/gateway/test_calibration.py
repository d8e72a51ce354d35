from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.adapters import CALIBRATION_FILE, CALIBRATIONS, OPINION_FILE, Calibration, OpinionShare
from schemas.tasks import TaskSpec
from services.gateway.formats.api import Choice
from services.gateway.formats.media import MediaReferences
from services.gateway.recording.recorder import Recorder
from services.gateway.routing.arms import Arm
from services.gateway.routing.calibration import CalibrationCache
from shared.model.confidence import joint_score
from shared.storage.artifacts import MANIFEST, ArtifactStore
from shared.storage.calibrations import AdapterCalibration
from tests.unit.shared.test_second_opinion import opinion

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


async def test_each_answer_is_measured_with_what_the_second_opinion_says_of_its_own_question(
    store: ArtifactStore, tmp_path: Path
) -> None:
    """A request of two prompts has two answers to each of them."""
    found = opinion(refund=3.0, delivery=3.0)
    share = OpinionShare(own=0.5, other=2.0, shift=0.1)
    shared = FOUND.model_copy(update={"opinion": share})
    publish(store, tmp_path, "desk-1", shared.model_dump_json(), {OPINION_FILE: found.to_bytes()})
    calibrations = CalibrationCache(store)
    calibrations.get("desk-1")
    await calibrations.look_up()
    nothing: Any = None
    recorder = Recorder(nothing, nothing, MediaReferences(b"m" * 32), calibrations)
    texts = ("a refund, please", "where is my delivery")
    calls = [{"api": "completions", "messages": [{"role": "user", "content": text}]} for text in texts]
    task = SimpleNamespace(name="desk", spec=DESK, keeps_media=False)
    request: Any = SimpleNamespace(task=task, calls=lambda media, external: calls, prediction_count=4)
    listed = [{"token": label, "logprob": math.log(p)} for label, p in (("refund", 0.75), ("delivery", 0.25))]
    choice = Choice("refund", [{"token": "refund", "logprob": math.log(0.75), "top_logprobs": listed}], "stop")
    in_flight: Any = SimpleNamespace(
        task=task, parsed=request, questions=recorder.encode_calls(request, None).questions
    )
    answer: Any = SimpleNamespace(choices=[choice._replace(number=number) for number in range(4)])
    measured = recorder.measure_confidence(in_flight, Arm("primary", "desk-1"), answer)
    expected = [joint_score(0.75, found.log_odds(text, "refund") or 0.0, share) for text in texts for _ in range(2)]
    assert [each.raw for each in measured] == pytest.approx(expected)
    assert expected[0] > 0.75 > expected[2]
    (alone, *_) = recorder.measure_confidence(in_flight, Arm("base", None), answer)
    assert (alone.score, alone.raw) == (pytest.approx(0.75), None)
