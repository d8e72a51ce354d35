"""Finds the prediction ids of answers that an OpenTelemetry instrumentation logs, for feedback."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any


class Spans:
    """A span processor that remembers which span reported which answer.

        spans = ratchet.Spans("support-desk")
        tracer_provider.add_span_processor(spans)
        completion = openai_client.chat.completions.create(…)
        if answer_id := spans.prediction_id(completion.id):  # None if the span was not sampled
            client.feedback(answer_id, "thumbs", positive=True)

    Ask soon after the answer (of a stream: after its end) and store the id: only `max_answers` are remembered.
    """

    def __init__(self, task: str, max_answers: int = 10_000) -> None:
        self._task = task
        self._max_answers = max_answers
        self._ids: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def prediction_id(self, response_id: str) -> str | None:
        """Return the prediction id, for `Client.feedback`, of the provider's response id; None if no span had it."""
        with self._lock:
            return self._ids.get(response_id)

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Do nothing: the answer is not known yet."""

    def _on_ending(self, span: Any) -> None:
        """Do nothing. The SDK calls this on every processor."""

    def on_end(self, span: Any) -> None:
        """Remember the span if it reports an answer."""
        response_id = (span.attributes or {}).get("gen_ai.response.id")
        if not isinstance(response_id, str):
            return
        with self._lock:
            self._ids[response_id] = f"{self._task}/{span.context.trace_id:032x}-{span.context.span_id:016x}"
            while len(self._ids) > self._max_answers:
                self._ids.popitem(last=False)

    def shutdown(self) -> None:
        """Do nothing: there is nothing to send."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return True: there is nothing to send."""
        return True
