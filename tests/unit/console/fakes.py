"""The console's API with its queue in memory, and builders for the questions that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from schemas.base import Event
from schemas.conversation import Answer, Call, Message, Role, ToolCall
from schemas.labels import LabelRequested, Purpose
from schemas.predictions import SubjectForgotten
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.console.domain import AnsweredQuestion, GivenAnswer, ReviewerCounts
from services.console.http import build_app
from services.console.redaction import AnswerRedactor
from services.console.reviews import Reviews
from services.console.settings import ConsoleSettings
from shared.errors import DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.redaction import Redactor

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
    return question(name, **{"purpose": Purpose.DISCORDANT_PAIR, "answers": answers, "ticket_id": "t1", **more})


class MemoryQueue:
    def __init__(self) -> None:
        self.requests: dict[str, LabelRequested] = {}
        self.given_answers: dict[tuple[str, str], GivenAnswer] = {}
        self.ended: set[str] = set()
        self.skips: set[tuple[str, str]] = set()
        self.recording_fails = False

    async def add_requests(self, requests: Sequence[LabelRequested]) -> None:
        for request in requests:
            self.requests.setdefault(request.request_id, request)

    def needed(self, request: LabelRequested) -> int:
        return request.overlap - sum(request_id == request.request_id for request_id, _ in self.given_answers)

    async def request(self, request_id: str) -> tuple[LabelRequested, int] | None:
        found = self.requests.get(request_id)
        return None if found is None else (found, self.needed(found))

    async def given(self, request_id: str, reviewer: str) -> GivenAnswer | None:
        return self.given_answers.get((request_id, reviewer))

    async def answers(self, task: str, reviewer: str, limit: int, before: datetime | None) -> list[AnsweredQuestion]:
        found = [
            AnsweredQuestion(self.requests[name], given, name in self.ended)
            for (name, who), given in self.given_answers.items()
            if who == reviewer and (before is None or given.at < before)
        ]
        return sorted(found, key=lambda answered: answered.given.at, reverse=True)[:limit]

    async def record(self, request_id: str, reviewer: str, given: GivenAnswer) -> bool:
        if self.recording_fails:
            raise DependencyUnavailable("no database")
        if request_id in self.requests:
            self.given_answers[(request_id, reviewer)] = given
        return request_id in self.requests

    async def has_had_another(self, request: LabelRequested, reviewer: str, since: datetime) -> bool:
        had = [self.requests[name] for name, who in self.skips if who == reviewer]
        return any(r.prediction_id == request.prediction_id and r.ticket_id != request.ticket_id for r in had)

    def open(self, tickets: bool, reviewer: str) -> list[LabelRequested]:
        return [
            r for r in self.requests.values()
            if (r.ticket_id is not None) is tickets and self.needed(r)
            and (r.request_id, reviewer) not in {*self.given_answers, *self.skips}
        ]  # fmt: skip

    async def skip(self, request_id: str, reviewer: str, at: datetime) -> bool:
        if (exists := request_id in self.requests) and self.recording_fails:
            raise DependencyUnavailable("no database")
        self.skips |= {(request_id, reviewer)} if exists else set()
        return exists

    async def reviewers(self, task: str) -> list[ReviewerCounts]:
        return [ReviewerCounts(name, 0, 0, 1) for _, name in sorted(self.skips)]

    async def tickets(self, task: str, spec: TaskSpec | None, reviewer: str, limit: int) -> list[LabelRequested]:
        return self.open(True, reviewer)[:limit]

    async def other_questions(
        self, task: str, spec: TaskSpec | None, reviewer: str, limit: int, purpose: Purpose | None = None
    ) -> list[LabelRequested]:
        return self.open(False, reviewer)[:limit]

    async def open_by_purpose(self, specs: Mapping[str, TaskSpec | None]) -> dict[str, dict[str, int]]:
        return {task: {"low_confidence": len(self.open(False, ""))} for task in specs}

    async def has_requests(self, task: str) -> bool:
        return any(request.task == task for request in self.requests.values())

    async def erase(self, event: SubjectForgotten) -> None:
        self.requests = {name: r for name, r in self.requests.items() if r.user_hash != event.subject_hash}

    async def withdraw(self, event: RolloutChanged) -> None: ...


class Scene:
    def __init__(self, tmp_path: Path) -> None:
        self.queue = MemoryQueue()
        self.published: list[Event] = []
        self.redactor_is_broken = False
        self.clock = NOON
        self.tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
        self.tasks._read.set()
        self.reviews = reviews = Reviews(self.queue, self, self.tasks, AnswerRedactor(self.redactor), self.tick)
        self.http = build_app(ConsoleSettings(home=tmp_path), reviews, None)  # type: ignore[arg-type]  # cycles are not read

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
