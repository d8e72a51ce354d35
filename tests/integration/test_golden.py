"""Golden sets on the real broker and vLLM: published by the scheduler, suggested by `ratchet golden`."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from uuid import uuid4

import pytest

from deploy.cli.golden.corrections import read_corrections
from deploy.cli.golden.suggestions import ask_base, right_twice
from deploy.devstack.ports import take_ports
from schemas.conversation import Answer, Call, Message, Role
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import SubjectForgotten
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.scheduler.golden.file import GoldenLine
from shared.kafka.broker import build_broker
from shared.kafka.publisher import Publisher
from shared.model.inference import InferenceClient
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import read_golden_set
from tests.integration.test_scheduler import SELDOM, events_of, scheduler
from tests.waiting import until

pytestmark = pytest.mark.stack
LABELS = ("refund", "login", "delivery")


@pytest.fixture
def task() -> str:
    return f"golden-{uuid4().hex[:8]}"


async def test_a_golden_file_of_20_000_rows_is_published_and_named_by_its_event(
    stack_settings: Settings, task: str, tmp_path: Path
) -> None:
    golden = tmp_path / "golden.jsonl"
    words = "a question of several hundred characters, as long as people write them, " * 5
    golden.write_text("".join(json.dumps({"text": f"{words}{n}", "label": "a"}) + "\n" for n in range(20_000)))
    assert golden.stat().st_size > 5 * 1024 * 1024  # More than any record of Kafka may have.
    (tmp_path / f"{task}.yaml").write_text(
        f"name: {task}\nkind: classification\nsystem_prompt: p\nlabels: [a, b]\ngolden_file: golden.jsonl\n"
        f"cron: {SELDOM}\n"
    )
    async with scheduler(stack_settings, tmp_path, take_ports(1)[0]):
        (value,) = await until(lambda: events_of(stack_settings, "tasks.changed.v1", task))
    assert len(value) < 10_000
    spec = TaskChanged.model_validate_json(value).spec
    store = ArtifactStore(stack_settings.artifacts_uri, tmp_path / "cache")
    try:
        assert len(read_golden_set(store, spec)) == 20_000
    finally:
        assert spec.golden_set is not None
        shutil.rmtree(store.fetch(store.address("golden", spec.golden_set.set_id)))


def correction(task: str, number: int) -> CorrectionSubmitted:
    return CorrectionSubmitted(
        task=task, task_revision="r", correction_id=f"{task}-c{number}", prediction_id=f"{task}-p{number}",
        request_id="r", purpose=Purpose.AUDIT, reviewer="ana", label="login", user_hash=f"u{number}",
        answers=(Answer(text="refund"),),
        call=Call(messages=(Message(role=Role.USER, content=f"question {number}"),)),
    )  # fmt: skip


async def test_corrections_are_read_up_to_the_topics_end_without_people_who_were_forgotten(
    stack_settings: Settings, task: str
) -> None:
    console, announcer = build_broker(stack_settings, "console"), build_broker(stack_settings, "scheduler")
    await asyncio.gather(console.start(), announcer.start())
    try:
        for number in range(12):
            await Publisher(console, "console").publish(correction(task, number))
        await Publisher(console, "console").publish(correction(f"{task}-other", 1))
        forgotten = SubjectForgotten(task=task, task_revision="r", subject_hash="u3")
        await Publisher(announcer, "scheduler").publish(forgotten)
    finally:
        await asyncio.gather(console.stop(), announcer.stop())
    found = await read_corrections(stack_settings, task)
    assert [c.prediction_id for c in found] == [f"{task}-p{number}" for number in range(12) if number != 3]


async def test_rows_that_the_base_model_gets_right_twice_are_found_with_vllm(vllm: str) -> None:
    spec = TaskSpec(
        name="desk", kind=TaskKind.CLASSIFICATION, base_model="SmolLM2-135M-Instruct", labels=LABELS,
        max_answer_tokens=8, system_prompt="Classify the customer's message. Answer with one label.",
    )  # fmt: skip
    texts = ["I want my money back", "I cannot sign in", "Where is my parcel?", "My password is refused"]
    rows = [GoldenLine(text=text, label=label).row(spec) for text in texts for label in LABELS]
    client = InferenceClient([vllm])
    try:
        kept = await right_twice(rows, 100, lambda batch: ask_base(client, batch, spec))
    finally:
        await client.close()
    assert sorted(row.prompt[0].text for row in kept) == sorted(texts)  # Constrained to labels, one of the three is it.
