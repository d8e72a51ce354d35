"""Feedback on an answer that an instrumentation logged, by the provider's own id of it."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider

import ratchet
from services.gateway.domain import PredictionIds


def test_an_answer_is_found_by_the_providers_id() -> None:
    spans = ratchet.Spans("support", most=2)
    provider = TracerProvider()
    provider.add_span_processor(spans)
    tracer = provider.get_tracer("test")
    for number in range(3):
        with tracer.start_as_current_span("chat", attributes={"gen_ai.response.id": f"chatcmpl-{number}"}) as span:
            last = span.get_span_context()
    with tracer.start_as_current_span("GET /"):
        pass
    ids = PredictionIds(b"k" * 32)
    name = spans.name_of("chatcmpl-2")
    assert name is not None
    assert ids.resolve(name) == ids.derive("support", f"{last.trace_id:032x}-{last.span_id:016x}")
    assert (spans.name_of("chatcmpl-0"), spans.name_of("never")) == (None, None)
    assert provider.force_flush()
    provider.shutdown()
