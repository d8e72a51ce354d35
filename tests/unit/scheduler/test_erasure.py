"""Erasing people: one event per person and task, by the hash that the gateway gives them, and nothing else."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.predictions import SubjectForgotten
from schemas.rollouts import Stage
from schemas.tasks import TaskChanged
from shared.identity import keyed_hash
from tests.database import Database
from tests.unit.scheduler.test_cycles import NOON, SPEC, SchedulerBench, rollout

USER = "jo@example.org"
HASH = keyed_hash(b"k" * 32, USER)


@pytest.fixture
async def bench(tmp_path: Path, database: Database) -> SchedulerBench:
    made = await SchedulerBench.open(tmp_path, database)
    for name in ("desk", "other"):
        spec = SPEC.model_copy(update={"name": name})
        await made.table.put(name, TaskChanged(task=name, task_revision=spec.revision, spec=spec))
    for table in (made.table, made.rollouts):
        await table.read_to({})
    return made


async def forget(bench: SchedulerBench, **body: Any) -> Any:
    return await bench.post("/api/subjects/forget", body)


async def test_a_person_is_erased_in_every_task_by_their_hash_alone(bench: SchedulerBench) -> None:
    answer = await forget(bench, users=[USER])
    assert answer.status_code == 202
    events = bench.of(SubjectForgotten)
    assert [(event.task, event.subject_hash, event.occurred_at) for event in events] == [
        ("desk", HASH, NOON), ("other", HASH, NOON),
    ]  # fmt: skip
    assert answer.json()["subjects"] == [HASH]
    text = answer.text + json.dumps([event.model_dump_json() for event in events])
    assert "example.org" not in text


async def test_hashes_and_a_single_task_may_be_named_and_nobody_is_announced_twice(bench: SchedulerBench) -> None:
    await forget(bench, users=[USER], hashes=[HASH, "a" * 24], task="other")
    assert [(event.task, event.subject_hash) for event in bench.of(SubjectForgotten)] == [
        ("other", HASH), ("other", "a" * 24),
    ]  # fmt: skip


async def test_a_later_request_is_another_event(bench: SchedulerBench) -> None:
    await forget(bench, users=[USER], task="desk")
    await forget(bench, users=[USER], task="desk")
    bench.now += timedelta(days=1)
    await forget(bench, users=[USER], task="desk")
    first, repeated, later = bench.of(SubjectForgotten)
    assert first.event_id == repeated.event_id != later.event_id
    assert later.occurred_at == NOON + timedelta(days=1)


async def test_without_announce_nothing_is_published(bench: SchedulerBench) -> None:
    answer = await forget(bench, users=[USER], announce=False)
    assert (answer.json()["subjects"], answer.json()["announced"]) == ([HASH], False)
    assert bench.published == []


async def test_the_answer_lists_the_adapters_in_use(bench: SchedulerBench) -> None:
    promoted = rollout("c", Stage.PROMOTED).model_copy(
        update={"primary_adapter": "desk-2", "previous_adapter": "desk-1"}
    )
    await bench.rollouts.put("desk", promoted)
    nothing = {"primary": None, "previous": None, "candidate": None}
    assert (await forget(bench, users=[USER])).json()["tasks"] == [
        {"task": "desk", "primary": "desk-2", "previous": "desk-1", "candidate": None}, {"task": "other", **nothing},
    ]  # fmt: skip
    for stage, candidate in ((Stage.CANARY, "desk-1"), (Stage.QUEUED, "desk-1"), (Stage.REJECTED, None)):
        await bench.rollouts.put("desk", rollout("c", stage))
        assert (await forget(bench, users=[USER], task="desk")).json()["tasks"][0]["candidate"] == candidate


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
async def test_a_bad_request_is_refused_without_repeating_the_name(
    bench: SchedulerBench, body: Any, status: int
) -> None:
    answer = await forget(bench, **body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert "example.org" not in answer.text
    assert bench.published == []


async def test_while_the_broker_is_away_the_request_fails_as_unavailable(bench: SchedulerBench) -> None:
    bench.away = True
    answer = await forget(bench, users=[USER])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


@pytest.mark.parametrize("behind", ["tasks", "rollouts"])
async def test_a_person_is_erased_once_all_tasks_and_rollouts_are_known(
    tmp_path: Path, database: Database, behind: str
) -> None:
    """After a start a task whose file was removed comes from the topic: nobody may be erased in the others alone."""
    bench = await SchedulerBench.open(tmp_path, database)
    await bench.table.put("desk", TaskChanged(task="desk", task_revision=SPEC.revision, spec=SPEC))
    late, read = (bench.table, bench.rollouts) if behind == "tasks" else (bench.rollouts, bench.table)
    await read.read_to({})
    request = asyncio.create_task(forget(bench, users=[USER]))
    await asyncio.sleep(0.05)
    assert bench.published == []
    removed = SPEC.model_copy(update={"name": "removed"})
    await bench.table.put("removed", TaskChanged(task="removed", task_revision=removed.revision, spec=removed))
    await bench.rollouts.put("desk", rollout("c", Stage.CANARY))
    await late.read_to({})
    answer = await request
    assert answer.json()["tasks"][0]["candidate"] == "desk-1"
    if behind == "tasks":
        assert [event.task for event in bench.of(SubjectForgotten)] == ["desk", "removed"]


async def test_a_body_over_the_limit_is_refused(bench: SchedulerBench) -> None:
    assert (await forget(bench, users=["x" * 400] * 100, task="y" * 70_000)).status_code == 413


GOLDEN_TASK = """\
name: desk
kind: classification
system_prompt: Classify.
labels: [delivery, refund]
golden_file: golden.jsonl
"""


def golden(who: str | None, day: int, text: str) -> str:
    row = {"text": text, "label": "refund", "prediction_id": f"p-{text}", "user_hash": who}
    return json.dumps(row | {"predicted_at": (NOON + timedelta(days=day)).isoformat()})


async def test_golden_rows_of_the_person_are_removed_with_a_history_that_has_no_text(
    bench: SchedulerBench, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "desk.yaml").write_text(GOLDEN_TASK)
    rows = [
        golden(HASH, 0, "theirs"),
        golden(HASH, 1, "later"),
        golden("b" * 24, 0, "another's"),
        golden(None, 0, "made up"),
    ]
    (folder / "golden.jsonl").write_text("\n".join(rows))
    listed = await forget(bench, users=[USER], announce=False)
    assert listed.json()["golden"] == [{"task": "desk", "rows": 1, "problem": None}]
    assert (folder / "golden.jsonl").read_text() == "\n".join(rows)
    assert (await forget(bench, users=[USER], task="other")).json()["golden"] == []
    assert (await forget(bench, users=[USER])).json()["golden"] == listed.json()["golden"]
    left = [json.loads(line)["text"] for line in (folder / "golden.jsonl").read_text().splitlines()]
    assert left == ["later", "another's", "made up"]
    history = (folder / "desk.golden.history.jsonl").read_text()
    assert json.loads(history)["action"] == "forgotten"
    assert not any(text in history.replace("p-theirs", "") for text in ("theirs", HASH, USER))


async def test_a_golden_set_that_cannot_be_read_is_reported_and_the_person_is_still_forgotten(
    bench: SchedulerBench, tmp_path: Path
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "desk.yaml").write_text(GOLDEN_TASK)
    (entry,) = (await forget(bench, users=[USER])).json()["golden"]
    assert entry["problem"].endswith("relative to this one")
    assert len(bench.of(SubjectForgotten)) == 2


async def test_a_file_that_may_be_a_tasks_and_cannot_be_read_is_reported(bench: SchedulerBench, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "helpdesk.yaml").write_text(GOLDEN_TASK)  # Without its golden file.
    found = (await forget(bench, users=[USER])).json()["golden"]
    assert [entry["task"] for entry in found] == ["desk", "other"]
    assert all("helpdesk.yaml" in entry["problem"] for entry in found)


async def test_a_golden_file_that_only_a_copy_of_the_task_names_does_not_stop_the_erasure(
    bench: SchedulerBench, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "desk.yaml").write_text(GOLDEN_TASK)
    (folder / "desk-old.yaml").write_text(GOLDEN_TASK.replace("golden.jsonl", "old.jsonl"))
    (folder / "golden.jsonl").write_text(golden(HASH, 0, "theirs"))
    (folder / "old.jsonl").write_text(golden(HASH, 0, "of before"))
    assert (await forget(bench, users=[USER])).json()["golden"] == [{"task": "desk", "rows": 1, "problem": None}]
    assert (folder / "golden.jsonl").read_text() == ""
