"""The console's API on a database, and builders for the questions that it reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.base import Event
from schemas.conversation import Answer, Call, Message, Role, ToolCall
from schemas.labels import LabelRequested, Purpose
from schemas.rollouts import Evidence, RolloutChanged, Stage
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.console.domain import GivenAnswer
from services.console.history import PostgresCycleHistory
from services.console.http import build_app
from services.console.redaction import AnswerRedactor
from services.console.reviews import Reviews
from services.console.settings import ConsoleSettings
from services.console.storage import PostgresQueue, _given
from services.console.tables import ANSWERS, SKIPS
from shared.errors import DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.redaction import Redactor
from tests.database import Database

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SPEC = TaskSpec(name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="p", labels=("delivery", "refund"))


def call(text: str) -> Call:
    return Call(messages=(Message(role=Role.USER, content=text),))


FIND = ToolCall(name="find_order", arguments='{"number": "4711"}', id="call_1")


def with_tools(result: str = "on its way", arguments: str = FIND.arguments, **more: Any) -> Call:
    """A conversation in which the model called two tools at once, and thought before it answered."""
    calls = (
        FIND.model_copy(update={"arguments": arguments}),
        ToolCall(name="find_person", arguments="{}", id="call_2"),
    )
    messages = (
        Message(role=Role.SYSTEM, content="Help the shop's customers."),
        Message(role=Role.USER, content="where is 4711?", name="customer"),
        Message(role=Role.ASSISTANT, tool_calls=calls),
        Message(role=Role.TOOL, content="Ada", tool_call_id="call_2"),
        Message(role=Role.TOOL, content=result, tool_call_id="call_1"),
        Message(role=Role.ASSISTANT, content="It is on its way.", reasoning="One was found."),
        Message(role=Role.USER, content="send my money back"),
    )
    tool = {"type": "function", "function": {"name": "find_order", "parameters": {"type": "object"}}}
    return Call(**{"messages": messages, "tools": (tool,), **more})


def question(name: str = "q", **more: Any) -> LabelRequested:
    fields = {
        "task": "desk", "task_revision": SPEC.revision, "request_id": name, "prediction_id": "desk.1.2",
        "purpose": Purpose.LOW_CONFIDENCE, "call": call("where is it?"),
        "answers": (Answer(text="refund"),), "labels": SPEC.labels, "inclusion_probability": 0.5,
        "drawn_probability": 0.6,
        "user_hash": "someone",
    }  # fmt: skip
    return LabelRequested(**{**fields, **more})


def ticket(name: str = "t", **more: Any) -> LabelRequested:
    answers = (Answer(text="refund"), Answer(text="delivery"))
    return question(
        name,
        **{"purpose": Purpose.DISCORDANT_PAIR, "answers": answers, "ticket_id": name, "cycle_id": "desk-1", **more},
    )


class InterruptedQueue(PostgresQueue):
    """The queue on a database that may go away before an answer or a skip is recorded."""

    recording_fails = False

    async def record(self, request_id: str, reviewer: str, given: GivenAnswer) -> bool:
        self._check()
        return await super().record(request_id, reviewer, given)

    async def skip(self, request_id: str, reviewer: str, at: datetime) -> bool:
        self._check()
        return await super().skip(request_id, reviewer, at)

    def _check(self) -> None:
        if self.recording_fails:
            raise DependencyUnavailable("no database")


class Scene:
    """The console's API on empty tables. What a reviewer leaves to others is left to them for good."""

    def __init__(self, home: Path, engine: AsyncEngine) -> None:
        self._engine = engine
        self.queue = InterruptedQueue(engine, timedelta(days=10_000))
        self.history = PostgresCycleHistory(engine)
        self.published: list[Event] = []
        self.redactor_is_broken = False
        self.clock = NOON
        self.tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
        self.tasks._read.set()
        self.reviews = reviews = Reviews(self.queue, self, self.tasks, AnswerRedactor(self.redactor), self.tick)
        self.http = build_app(ConsoleSettings(home=home), reviews, self.history)

    @classmethod
    async def of(cls, home: Path, database: Database, spec: TaskSpec | None = None) -> Scene:
        scene = cls(home, await database.engine("console"))
        if spec is not None:
            await scene.tasks.put("desk", TaskChanged(task="desk", task_revision=spec.revision, spec=spec))
        return scene

    async def given(self) -> dict[tuple[str, str], GivenAnswer]:
        """Return all answers that are recorded, by question and reviewer, the oldest first."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(ANSWERS).order_by(ANSWERS.c.answered_at))
            return {(row.request_id, row.reviewer): _given(row) for row in rows}

    async def skips(self) -> set[tuple[str, str]]:
        """Return the questions that were skipped, each with its reviewer."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(SKIPS))
            return {(row.request_id, row.reviewer) for row in rows}

    async def end_comparison(self) -> None:
        """Store that the candidate of the tickets was rejected."""
        event = RolloutChanged(
            task="desk", task_revision=SPEC.revision, cycle_id="desk-1", rollout_id="rollout-1", stage=Stage.REJECTED,
            primary_adapter=None, candidate_adapter="a1", candidate_uri="u", dataset_uri="d", data_cutoff=NOON,
            evidence=Evidence(alpha=0.01), reason="r", spec=SPEC,
        )  # fmt: skip
        await self.history.add_event(event)

    def tick(self) -> datetime:
        self.clock += timedelta(seconds=1)
        return self.clock

    def redactor(self) -> Redactor:
        if self.redactor_is_broken:
            raise OSError("no model")
        return Redactor(b"k" * 32)

    async def publish(self, event: Event) -> None:
        self.published.append(event)

    async def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **more)

    async def correct(self, request_id: str = "q", reviewer: str = "ann", **answer: Any) -> httpx.Response:
        body = {"request_id": request_id, "reviewer": reviewer, **answer}
        return await self.call("POST", "/api/corrections", json=body)
