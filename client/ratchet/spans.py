"""The names of answers that an OpenTelemetry instrumentation logs: for feedback by the answer's own id."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any


class Spans:
    """A span processor that remembers which span told of which answer.

        spans = ratchet.Spans("support-desk")
        tracer_provider.add_span_processor(spans)
        answer = openai.chat.completions.create(…)
        client.feedback(spans.name_of(answer.id), "thumbs", positive=True)

    Ask soon after the answer (of a stream: after its end), and keep the name: `most` answers are remembered.
    """

    def __init__(self, task: str, most: int = 10_000) -> None:
        self._task = task
        self._most = most
        self._names: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def name_of(self, response_id: str) -> str | None:
        """What `Client.feedback` takes for the answer that the provider calls so; None: no span told of it."""
        with self._lock:
            return self._names.get(response_id)

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Nothing is known of the answer yet."""

    def _on_ending(self, span: Any) -> None:
        """Of the SDK: a span may still be changed here. It is not."""

    def on_end(self, span: Any) -> None:
        """Remember it, if it is of an answer."""
        response_id = (span.attributes or {}).get("gen_ai.response.id")
        if not isinstance(response_id, str):
            return
        with self._lock:
            self._names[response_id] = f"{self._task}/{span.context.trace_id:032x}-{span.context.span_id:016x}"
            while len(self._names) > self._most:
                self._names.popitem(last=False)

    def shutdown(self) -> None:
        """Nothing is held that must go anywhere."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits."""
        return True
