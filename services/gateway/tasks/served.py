"""What a request needs of its task, worked out once for each change of the task. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from schemas.base import Variant
from schemas.tasks import TaskChanged, TaskKind
from services.gateway.domain import ChatMessage
from services.gateway.observability.metrics import Metrics
from shared.http import HttpError
from shared.kafka.latest_by_key import LatestByKey
from shared.model.confidence import request_fields


class ServedTask:
    """Of one task. `asks`: what confidence needs of the upstream, in the chat API's fields."""

    __slots__ = ("answers", "asks", "change", "classifies", "constraint", "name", "revision", "spec", "system")

    def __init__(self, change: TaskChanged, metrics: Metrics) -> None:
        self.change = change
        self.spec = change.spec
        self.name = change.task
        self.revision = change.task_revision
        self.classifies = change.spec.kind is TaskKind.CLASSIFICATION
        self.constraint = orjson.Fragment(orjson.dumps({"choice": list(change.spec.labels)}))
        self.system: ChatMessage | None = None
        if change.spec.system_prompt:
            self.system = {"role": "system", "content": change.spec.system_prompt}
        self.asks: dict[str, Any] = request_fields(change.spec)
        self.answers = {variant: metrics.answers.labels(change.task, variant) for variant in Variant}

    @property
    def top_logprobs(self) -> int:
        """How many alternatives of each token confidence needs."""
        return int(self.asks.get("top_logprobs") or 0)


class ServedTasks:
    """The tasks known now."""

    def __init__(self, table: LatestByKey[TaskChanged], metrics: Metrics) -> None:
        self._table = table
        self._metrics = metrics
        self._facts: dict[str, ServedTask] = {}

    def all(self) -> list[TaskChanged]:
        """By name."""
        return sorted(self._table, key=lambda change: change.task)

    def of(self, name: str) -> ServedTask:
        """The task of this name. Raises HttpError 404 naming those there are, 503 while none is known."""
        change = self._table.get(name)
        if change is None:
            raise self._unknown(name)
        facts = self._facts.get(name)
        if facts is None or facts.change is not change:
            facts = self._facts[name] = ServedTask(change, self._metrics)
        return facts

    def _unknown(self, name: str) -> HttpError:
        if not len(self._table):  # Just started: the tasks are still being read.
            message = "no task is known yet: try again, or apply one: ratchet tasks apply FILE"
            return HttpError(503, message, "not_ready")
        known = ", ".join(change.task for change in self.all())
        message = f"no task {name[:100]!r}; `model` must be a task's name. Known tasks: {known}"
        return HttpError(404, message, "model_not_found", "model")
