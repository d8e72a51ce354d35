"""The gateway's use cases: answer, take feedback, take answers made elsewhere. HTTP is in `http.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from schemas.base import MAX_TEXT, Message, Role, Variant
from schemas.predictions import Confidence, FeedbackGiven, PredictionLogged, RequestObserved
from schemas.tasks import TaskChanged
from services.gateway.chat import (
    ChatAnswer,
    ChatRequest,
    completion,
    parse_chat,
    parse_messages,
    read_answer,
    upstream_body,
)
from services.gateway.checks import MAX_USER, bad, feedback_fields, number, read_json, read_object, text_field
from services.gateway.clients import Flags, NotServed, Upstream, UpstreamFailed
from services.gateway.domain import Arm, PredictionIds, arms_in_order
from services.gateway.log import Log
from services.gateway.metrics import Metrics
from shared.http import HttpError
from shared.identity import event_id, keyed_hash
from shared.spool import SpoolFull
from shared.tables import LatestByKey

MAX_PREDICTIONS = 100


@dataclass(frozen=True)
class Answer:
    """What the client gets: OpenAI's completion, and the x-ratchet-* headers."""

    body: dict[str, Any]
    headers: dict[str, str]
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class _Asked:
    """One request while it is answered."""

    prediction_id: str
    task: TaskChanged
    request: ChatRequest
    user_hash: str | None
    started: float

    @property
    def latency_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1000


class Handlers:
    def __init__(
        self,
        tasks: LatestByKey[TaskChanged],
        flags: Flags,
        upstream: Upstream,
        log: Log,
        ids: PredictionIds,
        subjects_key: bytes,
        metrics: Metrics,
        answer_when_full: bool = False,
    ) -> None:
        self._tasks = tasks
        self._flags = flags
        self._upstream = upstream
        self._log = log
        self._ids = ids
        self._subjects_key = subjects_key
        self._metrics = metrics
        self._answer_when_full = answer_when_full

    def tasks(self) -> list[TaskChanged]:
        """The tasks known now, by name."""
        return sorted(self._tasks, key=lambda change: change.task)

    def task(self, name: str) -> TaskChanged:
        """The task of this name. Raises HttpError 404 naming those there are, 503 while none is known."""
        found = self._tasks.get(name)
        if found is None and not len(self._tasks):  # Just started: the tasks are still being read.
            raise HttpError(503, "no task is known yet: try again, or apply one: ratchet tasks apply FILE", "not_ready")
        if found is None:
            known = ", ".join(change.task for change in self.tasks())
            message = f"no task {name[:100]!r}; `model` must be a task's name. Known tasks: {known}"
            raise HttpError(404, message, "model_not_found", "model")
        return found

    async def answer(self, body: bytes) -> Answer:
        """Answer a chat completion request. The prediction is in the event log when this returns.

        Unless the log is full and the setting is to answer all the same: then a header says that it is not. Raises
        HttpError for what the client or the upstream did wrong, SpoolFull without room for the event.
        """
        data = read_object(body)
        task = self.task(text_field(data, "model", longest=MAX_TEXT, required=True) or "")
        request = parse_chat(data, task.spec)
        asked = _Asked(self._ids.new(task.task), task, request, self._user_hash(request.user), time.perf_counter())
        arms = arms_in_order(self._flags.of(task.task, request.user))
        arm, answer = await self._ask(asked, arms)
        kept = await self._keep(asked, arm, answer)
        self._metrics.answers.labels(task.task, arm.variant).inc()
        headers = {
            "x-ratchet-prediction-id": asked.prediction_id,
            "x-ratchet-variant": arm.variant.value,
            "x-ratchet-adapter": arm.adapter or "",
        }
        if answer.confidence.score is not None:
            headers["x-ratchet-confidence"] = f"{answer.confidence.score:.6f}"
        if not kept:
            headers["x-ratchet-logged"] = "false"
        if arm != arms[0]:
            headers["x-ratchet-instead-of"] = arms[0].variant.value
        shaped = completion(answer, request, task.task, asked.prediction_id)
        return Answer(shaped, headers, request.stream, request.include_usage)

    async def _ask(self, asked: _Asked, arms: tuple[Arm, ...]) -> tuple[Arm, ChatAnswer]:
        """The first arm whose adapter is served, with its answer. Every arm that failed is observed as failed."""
        for arm in arms:
            try:
                body = await self._upstream.complete(upstream_body(asked.request, asked.task.spec, arm))
                return arm, read_answer(body, asked.task.spec.kind)
            except NotServed as error:
                await self._failed(asked, arm, error.status)
                self._metrics.fallbacks.labels(asked.task.task, arm.variant).inc()
            except UpstreamFailed as error:
                await self._failed(asked, arm, error.status)
                raise HttpError(error.status, error.message, f"upstream_{error.reason}") from error
            except ValueError as error:
                await self._failed(asked, arm, 502)
                raise HttpError(502, f"the model server's answer is {error}", "upstream_garbled") from error
        model = arms[-1].adapter or asked.task.spec.base_model
        raise HttpError(502, f"no model server serves {model!r}, the task's base model", "upstream_not_served")

    async def _keep(self, asked: _Asked, arm: Arm, answer: ChatAnswer) -> bool:
        """Whether the prediction is kept, and with it what was observed of the request. Raises SpoolFull."""
        latency_ms = asked.latency_ms
        prediction = PredictionLogged(
            event_id=event_id("predictions.logged", asked.prediction_id),
            task=asked.task.task,
            task_revision=asked.task.task_revision,
            prediction_id=asked.prediction_id,
            messages=_messages(asked.request.messages),
            # An event carries no more; NUL is legal in JSON and in no database's text.
            answer=answer.text.replace("\x00", "")[:MAX_TEXT],
            model=arm.adapter or asked.task.spec.base_model,
            adapter=arm.adapter,
            variant=arm.variant,
            confidence=answer.confidence,
            user_hash=asked.user_hash,
            latency_ms=latency_ms,
            prompt_tokens=answer.prompt_tokens,
            answer_tokens=answer.answer_tokens,
            finish_reason=answer.finish_reason,
        )
        try:
            await self._log.append(prediction, _observed(asked, arm, 200, latency_ms, answer.confidence.score))
        except SpoolFull:
            if not self._answer_when_full:
                raise
            self._metrics.answers_unlogged.inc()
            return False
        return True

    async def _failed(self, asked: _Asked, arm: Arm, status: int) -> None:
        """Keep that this arm failed. Never raises: the client must hear of the failure, not of the log's."""
        try:
            await self._log.append(_observed(asked, arm, status, asked.latency_ms))
        except SpoolFull:
            self._metrics.observations_dropped.inc()

    async def feedback(self, body: bytes) -> dict[str, str]:
        """Take what a user or an application says of an answer. The same again is the same event.

        Raises HttpError: 404 for an id that we did not give, 422 for a label that the task has not, 400 otherwise.
        """
        data = read_object(body)
        prediction_id = text_field(data, "prediction_id", required=True) or ""
        name = self._ids.task_of(prediction_id)
        if name is None:
            raise HttpError(404, "no prediction has this id", "prediction_not_found", "prediction_id")
        task = self.task(name)
        kind, positive, text = feedback_fields(data, task.spec)
        user_hash = self._user_hash(text_field(data, "user", MAX_USER))
        event = FeedbackGiven(
            event_id=event_id("feedback.given", prediction_id, kind, positive, text, user_hash),
            task=task.task,
            task_revision=task.task_revision,
            prediction_id=prediction_id,
            kind=kind,
            positive=positive,
            text=text,
            user_hash=user_hash,
        )
        await self._log.append(event)
        return {"event_id": str(event.event_id), "prediction_id": prediction_id}

    async def record(self, body: bytes) -> list[str]:
        """Log answers that an application made elsewhere, one or a list: all or none. Returns their ids, in order."""
        data = read_json(body)
        items = data if isinstance(data, list) else [data]
        if not 1 <= len(items) <= MAX_PREDICTIONS:
            raise bad(f"send one prediction or a list of 1 to {MAX_PREDICTIONS}, not {len(items)}")
        events = []
        for place, item in enumerate(items):
            try:
                events.append(self._external(item))
            except HttpError as error:
                if isinstance(data, list):
                    error.body["error"]["message"] = f"prediction {place}: {error.body['error']['message']}"
                raise
        await self._log.append(*events)
        return [event.prediction_id for event in events]

    def _external(self, item: Any) -> PredictionLogged:
        if not isinstance(item, dict):
            raise bad("a prediction must be an object with `task`, `messages`, `answer` and `latency_ms`")
        task = self.task(text_field(item, "task", required=True) or "")
        prediction_id = self._ids.new(task.task)
        return PredictionLogged(
            event_id=event_id("predictions.logged", prediction_id),
            task=task.task,
            task_revision=task.task_revision,
            prediction_id=prediction_id,
            messages=_messages(parse_messages(item.get("messages"), task.spec)),
            answer=text_field(item, "answer", required=True) or "",
            model=text_field(item, "model", 200) or "external",
            adapter=text_field(item, "adapter", 200) or None,
            variant=Variant.EXTERNAL,
            confidence=Confidence(
                score=number(item, "confidence", 0.0, 1.0), logprob=number(item, "logprob", -1e9, 0.0)
            ),
            user_hash=self._user_hash(text_field(item, "user", MAX_USER)),
            latency_ms=number(item, "latency_ms", 0.0, 1e9, required=True) or 0.0,
        )

    def _user_hash(self, user: str | None) -> str | None:
        return keyed_hash(self._subjects_key, user) if user else None


def _observed(asked: _Asked, arm: Arm, status: int, latency_ms: float, score: float | None = None) -> RequestObserved:
    return RequestObserved(
        event_id=event_id("requests.observed", asked.prediction_id, arm.variant),
        task=asked.task.task,
        task_revision=asked.task.task_revision,
        prediction_id=asked.prediction_id,
        variant=arm.variant,
        adapter=arm.adapter,
        user_hash=asked.user_hash,
        status=status,
        latency_ms=latency_ms,
        confidence=score,
    )


def _messages(messages: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(role=Role(message["role"]), content=message["content"]) for message in messages)
