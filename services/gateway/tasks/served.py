"""The tasks that are served, with what a request needs of its task, computed once for each change of it. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from schemas.base import Variant
from schemas.task_settings import MediaPolicy
from schemas.tasks import TaskChanged
from services.gateway.observability.metrics import Metrics
from shared.answers import answer_form
from shared.conversation.response_format import response_format, responses_format
from shared.conversation.task_tools import chat_fields, responses_fields
from shared.http import HttpError
from shared.kafka.latest_by_key import LatestByKey


class ServedTask:
    """A task as requests need it.

    `confidence_fields`: what a chat request must ask for, so that its answer can be measured. `constraint`: a
    classification's labels, as vLLM's `structured_outputs`. `response_format`, `responses_format`: the schema of an
    extraction or of a list of labels, for the APIs that take it so. `tool_fields`, `responses_tool_fields`: the same of
    a task's functions. `answers`: counters by variant.
    """

    __slots__ = (
        "answers", "change", "classifies", "confidence_fields", "constraint", "form", "keeps_media", "name",
        "response_format", "responses_format", "responses_tool_fields", "revision", "spec",
        "system", "tool_fields", "top_logprobs",
    )  # fmt: skip

    def __init__(self, change: TaskChanged, metrics: Metrics) -> None:
        self.change = change
        self.spec = change.spec
        self.name = change.task
        self.revision = change.task_revision
        form = answer_form(change.spec)
        self.form = form
        self.classifies = bool(change.spec.choices)
        self.keeps_media = change.spec.media is MediaPolicy.KEEP
        self.constraint = orjson.Fragment(orjson.dumps({"choice": list(change.spec.labels)}))
        self.response_format = response_format(change.spec)
        self.responses_format = responses_format(change.spec)
        self.tool_fields = chat_fields(change.spec)
        self.responses_tool_fields = responses_fields(change.spec)
        self.system: dict[str, str] | None = None
        if change.spec.system_prompt:
            self.system = {"role": "system", "content": change.spec.system_prompt}
        self.confidence_fields: dict[str, Any] = dict(form.confidence_fields)
        self.top_logprobs = int(self.confidence_fields.get("top_logprobs") or 0)
        self.answers = {variant: metrics.answers.labels(change.task, variant) for variant in Variant}


class ServedTasks:
    def __init__(self, table: LatestByKey[TaskChanged], metrics: Metrics) -> None:
        self._table = table
        self._metrics = metrics
        self._served: dict[str, ServedTask] = {}

    def all(self) -> list[TaskChanged]:
        """All tasks, by name."""
        return sorted(self._table, key=lambda change: change.task)

    def get(self, name: str) -> ServedTask:
        """The task of this name. Raises HttpError 404 with the names of the existing tasks, 503 while none is known."""
        change = self._table.get(name)
        if change is None:
            raise self._unknown(name)
        task = self._served.get(name)
        if task is None or task.change is not change:
            task = self._served[name] = ServedTask(change, self._metrics)
        return task

    def has_others_than(self, name: str) -> bool:
        """Return True if tasks are known, and none has this name."""
        return len(self._table) > 0 and self._table.get(name) is None

    def _unknown(self, name: str) -> HttpError:
        if not len(self._table):  # Just started: the topic is still being read.
            message = "no task is known yet: try again, or apply one: ratchet tasks apply FILE"
            return HttpError(503, message, "not_ready")
        known = ", ".join(change.task for change in self.all())
        message = f"no task {name[:100]!r}; `model` must be a task's name. Known tasks: {known}"
        return HttpError(404, message, "model_not_found", "model")
