"""Forgetting people: an event for each person and task, by the hash that the gateway gives them, and nothing else."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.predictions import SubjectForgotten
from schemas.rollouts import Stage
from schemas.tasks import TaskChanged
from shared.identity import keyed_hash
from tests.unit.scheduler.test_cycles import NOON, SPEC, Scene, rollout

WHO = "jo@example.org"
HASH = keyed_hash(b"k" * 32, WHO)


@pytest.fixture
async def stage(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    for name in ("desk", "other"):
        spec = SPEC.model_copy(update={"name": name})
        await made.table.put(name, TaskChanged(task=name, task_revision=spec.revision, spec=spec))
    return made


async def forget(stage: Scene, **body: Any) -> Any:
    return await stage.post("/api/subjects/forget", body)


async def test_a_person_is_forgotten_in_every_task_by_their_hash_alone(stage: Scene) -> None:
    answer = await forget(stage, users=[WHO])
    assert answer.status_code == 202
    events = stage.of(SubjectForgotten)
    assert [(event.task, event.subject_hash, event.occurred_at) for event in events] == [
        ("desk", HASH, NOON), ("other", HASH, NOON),
    ]  # fmt: skip
    assert answer.json()["subjects"] == [HASH]
    said = answer.text + json.dumps([event.model_dump_json() for event in events])
    assert "example.org" not in said


async def test_hashes_will_do_and_one_task_is_enough_and_nobody_is_named_twice(stage: Scene) -> None:
    await forget(stage, users=[WHO], hashes=[HASH, "a" * 24], task="other")
    assert [(event.task, event.subject_hash) for event in stage.of(SubjectForgotten)] == [
        ("other", HASH), ("other", "a" * 24),
    ]  # fmt: skip


async def test_asking_again_later_is_another_fact(stage: Scene) -> None:
    await forget(stage, users=[WHO], task="desk")
    await forget(stage, users=[WHO], task="desk")
    stage.now += timedelta(days=1)
    await forget(stage, users=[WHO], task="desk")
    first, again, later = stage.of(SubjectForgotten)
    assert first.event_id == again.event_id != later.event_id
    assert later.occurred_at == NOON + timedelta(days=1)


async def test_without_announcing_nothing_is_published(stage: Scene) -> None:
    answer = await forget(stage, users=[WHO], announce=False)
    assert (answer.json()["subjects"], answer.json()["announced"]) == ([HASH], False)
    assert stage.published == []


async def test_the_answer_says_what_serves(stage: Scene) -> None:
    promoted = rollout("c", Stage.PROMOTED).model_copy(
        update={"primary_adapter": "desk-2", "previous_adapter": "desk-1"}
    )
    await stage.rollouts.put("desk", promoted)
    nothing = {"primary": None, "previous": None, "candidate": None}
    assert (await forget(stage, users=[WHO])).json()["tasks"] == [
        {"task": "desk", "primary": "desk-2", "previous": "desk-1", "candidate": None}, {"task": "other", **nothing},
    ]  # fmt: skip
    await stage.rollouts.put("desk", rollout("c", Stage.CANARY))
    assert (await forget(stage, users=[WHO], task="desk")).json()["tasks"][0]["candidate"] == "desk-1"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"users": [""]}, 422),
        ({"users": ["x" * 501]}, 422),
        ({"users": ["x"] * 101}, 422),
        ({"users": "jo@example.org"}, 422),
        ({"hashes": ["jo@example.org"]}, 422),
        ({"users": ["jo@example.org"], "task": "nope"}, 404),
        ({"users": ["jo@example.org"], "tsak": "desk"}, 422),
    ],
)
async def test_a_bad_request_is_told_why_without_repeating_who(stage: Scene, body: Any, status: int) -> None:
    answer = await forget(stage, **body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert "example.org" not in answer.text
    assert stage.published == []


async def test_while_the_broker_is_away_the_request_is_to_be_sent_again(stage: Scene) -> None:
    stage.away = True
    answer = await forget(stage, users=[WHO])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


async def test_a_body_over_the_limit_is_refused(stage: Scene) -> None:
    assert (await forget(stage, users=["x" * 400] * 100, task="y" * 70_000)).status_code == 413
