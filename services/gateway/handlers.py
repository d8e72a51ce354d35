"""The use cases behind the HTTP routes that are not hot: models, feedback, predictions made elsewhere.

produces  feedback.given · predictions.logged (variant external)

Answering, the hot route, is `answering/`. The routes themselves are in `http.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from schemas.predictions import FeedbackGiven
from schemas.tasks import TaskChanged
from services.gateway.asgi.large_work import LargeWork
from services.gateway.auth.grants import AccessControl, Grant, Headers
from services.gateway.formats.media import InlineMedia
from services.gateway.formats.validation import (
    MAX_REFERENCE,
    MAX_USER,
    bad_request,
    feedback_fields,
    read_json,
    read_object,
    text_field,
)
from services.gateway.observability.tracing import event_headers
from services.gateway.recording.event_log import SpoolEventLog, encode_event
from services.gateway.recording.external import ExternalPredictions
from services.gateway.recording.reported import read_report
from services.gateway.routing.passed_models import NO_MODELS, PassedModels
from services.gateway.tasks.served import ServedTasks
from shared.http import HttpError
from shared.identity import event_id
from shared.spool import Record
from shared.tracing import TraceHeaders

MAX_PREDICTIONS = 100
"""The most predictions made elsewhere in one request."""
_NO_PREDICTION = (
    "no prediction has this id: send what the answer's header x-ratchet-prediction-id says, or <task>/<your own id>"
)


class _BuiltPredictions(NamedTuple):
    """Predictions made elsewhere: their ids and records, and what is to be kept of their media."""

    ids: list[str]
    records: list[Record]
    kept: list[InlineMedia]


class Handlers:
    """`public_metrics`: the metrics need no key."""

    def __init__(
        self,
        tasks: ServedTasks,
        log: SpoolEventLog,
        external: ExternalPredictions,
        access: AccessControl,
        large_work: LargeWork,
        public_metrics: bool = False,
        passed: PassedModels = NO_MODELS,
    ) -> None:
        self._tasks = tasks
        self._log = log
        self._external = external
        self._ids = external.identifiers.predictions
        self._user_hash = external.identifiers.user_hash
        self._access = access
        self._public_metrics = public_metrics
        self._passed = passed
        self._large_work = large_work

    def models(self, headers: Headers) -> list[TaskChanged | str]:
        """The tasks that the caller may use, by name, and the names of models that pass through for it.

        Raises HttpError 401, 429.
        """
        grant = self._access.grant(headers)
        tasks = [change for change in self._tasks.all() if grant.allows(change.task)]
        passed = [name for name in self._passed.names if grant.pass_through and self._tasks.has_others_than(name)]
        return [*tasks, *passed]

    def model(self, name: str, headers: Headers) -> TaskChanged | str:
        """The task of this name, or the model that passes through.

        Raises HttpError 404 with the names of the existing tasks, 401, 403, 429.
        """
        grant = self._access.grant(headers)
        if grant.pass_through and name in self._passed and self._tasks.has_others_than(name):
            return name
        grant.require(name)
        return self._tasks.get(name).change

    def has_access(self, headers: Headers) -> bool:
        """Return True if the caller may use the gateway at all."""
        try:
            self._access.grant(headers)
        except HttpError:
            return False
        return True

    def require_metrics(self, headers: Headers) -> None:
        """Check that the caller may read the metrics, which name every task. Raises HttpError 401, 403, 429."""
        if not self._public_metrics and self._access.grant(headers).tasks is not None:
            message = "the metrics name every task, and this API key is for some. Send a key that is for all tasks"
            raise HttpError(403, message, "task_not_allowed")

    async def feedback(self, body: bytes, grant: Grant, headers: Headers) -> dict[str, str]:
        """Record what a user or an application says about an answer. Idempotent.

        Raises HttpError 404 for an unknown prediction id, 422 for a label that the task does not have, else 400.
        """
        data = read_object(body)
        prediction_id = self._ids.resolve(text_field(data, "prediction_id", MAX_REFERENCE, required=True) or "")
        name = self._ids.task_of(prediction_id) if prediction_id is not None else None
        if prediction_id is None or name is None:
            raise HttpError(404, _NO_PREDICTION, "prediction_not_found", "prediction_id")
        grant.require(name)
        task = self._tasks.get(name)
        kind, positive, text = feedback_fields(data, task.spec)
        user_hash = self._user_hash(text_field(data, "user", MAX_USER))
        event = FeedbackGiven(
            event_id=event_id("feedback.given", prediction_id, kind, positive, text, user_hash),
            task=task.name,
            task_revision=task.revision,
            prediction_id=prediction_id,
            kind=kind,
            positive=positive,
            text=text,
            user_hash=user_hash,
        )
        await self._log.append([encode_event(event, event_headers(headers))])
        return {"event_id": str(event.event_id), "prediction_id": prediction_id}

    async def record_predictions(self, body: bytes, grant: Grant, headers: Headers) -> list[str]:
        """Record predictions made elsewhere, one or a list, all or none. Returns their ids in order.

        Idempotent for predictions with a `prediction_id`, the application's own.
        """
        data = read_json(body)
        items = data if isinstance(data, list) else [data]
        if not 1 <= len(items) <= MAX_PREDICTIONS:
            raise bad_request(f"send one prediction or a list of 1 to {MAX_PREDICTIONS}, not {len(items)}")
        built = await self._large_work.run(len(body), self._build, items, isinstance(data, list), grant, headers)
        await self._log.append(built.records, built.kept or None)
        return built.ids

    def _build(self, items: list[Any], is_list: bool, grant: Grant, headers: Headers) -> _BuiltPredictions:
        """What is recorded of predictions. May be called in a thread. Raises HttpError that names the invalid one."""
        trace = event_headers(headers)
        built = _BuiltPredictions([], [], [])
        for number, item in enumerate(items):
            try:
                prediction_id, record = self._prediction(item, grant, trace, built.kept)
            except HttpError as error:
                if is_list:
                    error.body["error"]["message"] = f"prediction {number}: {error.body['error']['message']}"
                raise
            built.ids.append(prediction_id)
            built.records.append(record)
        return built

    def _prediction(self, item: Any, grant: Grant, trace: TraceHeaders, kept: list[InlineMedia]) -> tuple[str, Record]:
        """A prediction's id and record. What is to be kept of its media is added to `kept`."""
        if not isinstance(item, dict):
            raise bad_request("a prediction must be an object with `task`, `messages`, `answer` and `latency_ms`")
        name = text_field(item, "task", required=True) or ""
        grant.require(name)
        report, media = read_report(item, self._tasks.get(name), self._external, grant.app, trace)
        (prediction_id,), record = self._external.record(report)
        kept += media.collected or ()
        return prediction_id, record
