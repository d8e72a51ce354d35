"""Confidence is calibrated wherever whole answers are right or wrong: labels, sets of them, JSON, calls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from schemas.conversation import Message, Role
from schemas.tasks import TaskSpec
from services.evaluator.calibration import chance_mistake_looks_right
from services.evaluator.domain import Question
from services.evaluator.job import calibrate
from services.evaluator.recipe import ArmAnswers
from shared.storage.artifacts import ArtifactStore
from tests.unit.evaluator.reports import trained
from tests.unit.shared.grading.home import calls, home
from tests.unit.shared.grading.orders import orders
from tests.unit.shared.grading.tickets import LABELS, tickets, topics

DESK = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Which?", "labels": ["a", "b", "c", "d", "e"]}
)
FREE = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})


@pytest.mark.parametrize(
    ("spec", "right", "wrong"),
    [
        (DESK, "a", "b"),
        (tickets(), topics("delivery", "refund"), topics("refund")),
        (orders(), json.dumps({"total": 20}), json.dumps({"total": 2})),
        (home(), calls(("stop", {})), calls(("set_light", {"room": "hall", "on": True}))),
    ],
    ids=["label", "labels", "JSON", "calls"],
)
def test_a_model_that_is_too_sure_is_calibrated_by_how_often_whole_answers_are_right(
    spec: TaskSpec, right: str, wrong: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(7)
    sure = rng.random(200)
    asked = [Question((Message(role=Role.USER, content=f"message {i}"),), right) for i in range(200)]
    answers = tuple(right if ok else wrong for ok in rng.random(200) < sure**3)
    arm = ArmAnswers(answers=answers, latencies_ms=(1.0,) * 200, scores=tuple(map(float, sure)))
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    found, reliability = calibrate(trained(spec), asked, arm, store)
    assert found is not None and reliability is not None
    assert found.ece_after < found.ece_before
    assert found.low_confidence is not None


@pytest.mark.parametrize(
    ("spec", "chance"),
    [(DESK, 1 / 4), (tickets(), 1 / (2 ** len(LABELS) - 1)), (orders(), 0.0), (home(), 0.0), (FREE, None)],
    ids=["label", "labels", "JSON", "calls", "text"],
)
def test_a_mistake_makes_a_wrong_answer_look_right_if_it_names_this_very_answer(
    spec: TaskSpec, chance: float | None
) -> None:
    assert chance_mistake_looks_right(spec) == chance
