"""What reviewers see, what they may answer, and what is published."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from nicegui import Client
from nicegui.page import page

from schemas.base import Event, Message, Role
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import SubjectForgotten
from schemas.rollouts import RolloutChanged
from schemas.tasks import RedactionSettings, TaskChanged, TaskKind, TaskSpec
from services.console.domain import ReviewAnswer, interleave, keys_for, shown
from services.console.http import build_app
from services.console.pages.review import ReviewPage, _conversation
from services.console.redaction import AnswerRedactor
from services.console.reviews import Reviews
from services.console.settings import ConsoleSettings
from shared.errors import DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.redaction import Redactor

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SPEC = TaskSpec(name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="p", labels=("delivery", "refund"))


def question(name: str = "q", **more: Any) -> LabelRequested:
    fields = {
        "task": "desk", "task_revision": SPEC.revision, "request_id": name, "prediction_id": "desk.1.2",
        "purpose": Purpose.LOW_CONFIDENCE, "messages": (Message(role=Role.USER, content="where is it?"),),
        "answers": ("refund",), "labels": SPEC.labels, "inclusion_probability": 0.5, "user_hash": "someone",
    }  # fmt: skip
    return LabelRequested(**{**fields, **more})


def ticket(name: str = "t", **more: Any) -> LabelRequested:
    return question(name, purpose=Purpose.DISCORDANT_PAIR, answers=("refund", "delivery"), ticket_id="t1", **more)


class MemoryQueue:
    def __init__(self) -> None:
        self.requests: dict[str, LabelRequested] = {}
        self.answers: dict[tuple[str, str], ReviewAnswer] = {}
        self.recording_fails = False

    async def add_requests(self, requests: Sequence[LabelRequested]) -> None:
        for request in requests:
            self.requests.setdefault(request.request_id, request)

    def needed(self, request: LabelRequested) -> int:
        return request.overlap - sum(request_id == request.request_id for request_id, _ in self.answers)

    async def request(self, request_id: str) -> tuple[LabelRequested, int] | None:
        found = self.requests.get(request_id)
        return None if found is None else (found, self.needed(found))

    async def answered(self, request_id: str, reviewer: str) -> bool:
        return (request_id, reviewer) in self.answers

    async def record(self, request_id: str, reviewer: str, answer: ReviewAnswer, at: datetime) -> None:
        if self.recording_fails:
            raise DependencyUnavailable("no database")
        self.answers[(request_id, reviewer)] = answer

    def open(self, tickets: bool, reviewer: str) -> list[LabelRequested]:
        return [
            r for r in self.requests.values()
            if (r.ticket_id is not None) is tickets and self.needed(r) and (r.request_id, reviewer) not in self.answers
        ]  # fmt: skip

    async def tickets(
        self, task: str, revision: str | None, reviewer: str, limit: int, skipped: Collection[str] = ()
    ) -> list[LabelRequested]:
        return self.open(True, reviewer)[:limit]

    async def other_questions(
        self, task: str, revision: str | None, reviewer: str, limit: int, purpose: Purpose | None = None,
        skipped: Collection[str] = (),
    ) -> list[LabelRequested]:  # fmt: skip
        return self.open(False, reviewer)[:limit]

    async def open_by_purpose(self, task: str, revision: str | None) -> dict[str, int]:
        return {"low_confidence": len(self.open(False, ""))}

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
        self.tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
        reviews = Reviews(self.queue, self, self.tasks, AnswerRedactor(self.redactor), lambda: NOON)
        self.http = build_app(ConsoleSettings(home=tmp_path), reviews, None)  # type: ignore[arg-type]  # cycles are not read

    def redactor(self) -> Redactor:
        if self.redactor_is_broken:
            raise OSError("no model")
        return Redactor(b"k" * 32)

    async def publish(self, event: Event) -> None:
        self.published.append(event)

    async def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://console") as client:
            return await client.request(method, path, **more)

    async def correct(self, request_id: str = "q", reviewer: str = "ann", **answer: Any) -> httpx.Response:
        body = {"request_id": request_id, "reviewer": reviewer, **answer}
        return await self.call("POST", "/api/corrections", json=body)


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    await scene.tasks.put("desk", TaskChanged(task="desk", task_revision=SPEC.revision, spec=SPEC))
    await scene.queue.add_requests([question(), ticket()])
    return scene


async def test_a_correction_has_the_fields_of_its_question(scene: Scene) -> None:
    assert (await scene.correct("t", label="delivery", seconds=2.5)).status_code == 200
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    request = ticket()
    for name in ("task", "task_revision", "request_id", "prediction_id", "purpose", "messages", "answers",
                 "inclusion_probability", "overlap", "ticket_id", "user_hash"):  # fmt: skip
        assert getattr(event, name) == getattr(request, name)
    assert (event.reviewer, event.label, event.seconds) == ("ann", "delivery", 2.5)


async def test_a_second_answer_of_the_same_reviewer_is_the_same_correction_published_once(scene: Scene) -> None:
    first, second = await scene.correct(label="delivery"), await scene.correct(label="refund")
    assert first.json() == second.json()
    assert len(scene.published) == 1


async def test_an_answer_whose_recording_failed_is_published_again_as_the_same_event(scene: Scene) -> None:
    scene.queue.recording_fails = True
    assert (await scene.correct(label="delivery")).status_code == 503
    scene.queue.recording_fails = False
    assert (await scene.correct(label="delivery")).status_code == 200
    assert len({event.event_id for event in scene.published}) == 1


async def test_an_answer_to_a_question_with_enough_answers_is_not_published(scene: Scene) -> None:
    await scene.correct(label="delivery", reviewer="ann")
    late = await scene.correct(label="refund", reviewer="ben")
    assert (late.status_code, late.json()["counted"]) == (200, False)
    assert len(scene.published) == 1


async def test_what_a_reviewer_types_is_redacted_before_it_is_published_or_stored(scene: Scene) -> None:
    await scene.queue.add_requests([question("free", labels=())])
    assert (await scene.correct("free", label="Write to maria@acme.internal.")).status_code == 200
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert event.redactions == 1
    assert event.label is not None
    assert "acme" not in event.label
    assert scene.queue.answers["free", "ann"].label == event.label


async def test_a_surrogate_copied_from_the_question_stays(scene: Scene) -> None:
    asked = question("free", labels=(), messages=(Message(role=Role.USER, content="I am x@example.com"),))
    await scene.queue.add_requests([asked])
    await scene.correct("free", label="Dear x@example.com")
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert (event.label, event.redactions) == ("Dear x@example.com", 0)


async def test_answers_of_a_task_without_redaction_are_not_redacted(scene: Scene) -> None:
    spec = SPEC.model_copy(update={"redaction": RedactionSettings(enabled=False)})
    await scene.tasks.put("desk", TaskChanged(task="desk", task_revision=spec.revision, spec=spec))
    await scene.queue.add_requests([question("free", labels=())])
    await scene.correct("free", label="Write to maria@acme.internal.")
    assert [getattr(event, "label", None) for event in scene.published] == ["Write to maria@acme.internal."]


async def test_an_answer_that_cannot_be_redacted_is_neither_published_nor_stored(scene: Scene) -> None:
    scene.redactor_is_broken = True
    await scene.queue.add_requests([question("free", labels=())])
    assert (await scene.correct("free", label="Write to maria@acme.internal.")).status_code == 503
    assert (scene.published, scene.queue.answers) == ([], {})
    scene.redactor_is_broken = False
    assert (await scene.correct("free", label="Write to maria@acme.internal.")).status_code == 200


async def test_two_reviewers_may_answer_a_question_that_needs_two(scene: Scene) -> None:
    await scene.queue.add_requests([question("two", overlap=2)])
    ids = {(await scene.correct("two", reviewer=name, label="refund")).json()["correction_id"] for name in "ab"}
    assert len(ids) == 2
    assert len(scene.published) == 2


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ({"request_id": "unknown", "label": "refund"}, 404, "no question 'unknown'"),
        ({"label": "parcel"}, 422, "expected one of 'delivery', 'refund'"),
        ({}, 422, "exactly one of label and preference"),
        ({"label": "refund", "preference": "a"}, 422, "exactly one of label and preference"),
        ({"preference": "a"}, 422, "asks for the true answer"),
        ({"label": ""}, 422, "found no text"),
        ({"label": "x" * 32_001}, 422, "at most 32,000"),
        ({"preference": "maybe"}, 422, "preference"),
        ({"label": "refund", "reviewer": "  "}, 422, "reviewer"),
        ({"label": "refund", "reviewer": "x" * 101}, 422, "reviewer"),
        ({"label": "refund", "reviewer": "a\nb"}, 422, "reviewer"),
        ({"label": "refund", "seconds": -1}, 422, "seconds"),
        ({"label": "refund", "lable": "refund"}, 422, "lable"),
        ({"label": "refund", "request_id": "q\x00"}, 422, "request_id"),
    ],
)
async def test_an_invalid_correction_gets_a_reason_and_is_not_published(
    scene: Scene, answer: dict[str, Any], status: int, message: str
) -> None:
    refused = await scene.correct(**answer)
    assert refused.status_code == status
    assert message in refused.json()["error"]["message"]
    assert scene.published == []


async def test_a_long_list_of_allowed_labels_is_cut(scene: Scene) -> None:
    await scene.queue.add_requests([question("many", labels=tuple(f"l{n}" for n in range(77)))])
    message = (await scene.correct("many", label="x")).json()["error"]["message"]
    assert "'l19' and 57 more" in message


async def test_a_pair_of_free_texts_is_compared(scene: Scene) -> None:
    await scene.queue.add_requests([ticket("pair", labels=())])
    assert "which answer is better" in (await scene.correct("pair", label="A")).json()["error"]["message"]
    assert (await scene.correct("pair", preference="both_right")).status_code == 200


async def test_a_body_over_the_limit_is_refused(scene: Scene) -> None:
    assert (await scene.correct(label="x" * 300_000)).status_code == 413


@pytest.mark.parametrize("body", [b"{oops", b"", b"[]", b"\xff"])
async def test_a_malformed_body_is_refused(scene: Scene, body: bytes) -> None:
    answer = await scene.call("POST", "/api/corrections", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


async def test_the_queue_alternates_tickets_and_other_questions(scene: Scene) -> None:
    await scene.queue.add_requests([question("q2"), question("q3"), ticket("t2")])
    answer = await scene.call("GET", "/api/queue", params={"task": "desk", "reviewer": "ann"})
    assert [item["request_id"] for item in answer.json()["items"]] == ["t", "q", "t2", "q2", "q3"]
    tickets = await scene.call(
        "GET", "/api/queue", params={"task": "desk", "reviewer": "a", "purpose": "discordant_pair"}
    )
    assert [item["request_id"] for item in tickets.json()["items"]] == ["t", "t2"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/queue?task=nope&reviewer=ann", 404),
        ("/api/queue/count?task=nope", 404),
        ("/api/queue?task=Nope!&reviewer=ann", 422),
        ("/api/queue?task=desk", 422),
        ("/api/queue?task=desk&reviewer=ann&limit=0", 422),
        ("/api/queue?task=desk&reviewer=ann&purpose=fun", 422),
    ],
)
async def test_an_invalid_queue_request_gets_a_reason(scene: Scene, path: str, status: int) -> None:
    answer = await scene.call("GET", path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_page_alternates_tickets_and_other_questions() -> None:
    with Client(page("")):
        review_page = ReviewPage(None, "desk")  # type: ignore[arg-type]  # the queue is not read
    shown_ids = [review_page._next_of(found).request_id for found in ([ticket(), question()], [ticket(), question()])]  # type: ignore[union-attr]
    assert shown_ids == ["t", "q"]
    assert review_page._next_of([]) is None
    assert review_page._next_of([ticket("t1"), ticket("t2")]).request_id == "t1"  # type: ignore[union-attr]


def test_a_question_is_shown_without_the_models_of_its_answers() -> None:
    assert set(shown(ticket())) == {
        "request_id", "prediction_id", "purpose", "messages", "answers", "labels", "overlap",
    }  # fmt: skip


def test_the_page_of_a_label_question_shows_no_answer_and_escapes_what_it_shows() -> None:
    page = _conversation(question(messages=(Message(role=Role.USER, content="<script>alert(1)</script>"),)))
    assert "refund" not in page
    assert "<script>" not in page


def test_interleaving_preserves_both_orders_and_the_limit() -> None:
    assert interleave([1, 2], [10, 20, 30, 40], 5) == [1, 10, 2, 20, 30]
    assert interleave([], [10, 20], 1) == [10]


def test_keys_go_from_one_to_nine_zero_and_letters() -> None:
    keys = keys_for(f"l{n}" for n in range(40))
    assert (keys["1"], keys["0"], keys["a"], keys["z"], len(keys)) == ("l0", "l9", "l10", "l35", 36)
