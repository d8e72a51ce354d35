"""`ratchet.Spans` finds the prediction id of an answer that an instrumentation logged."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider

import ratchet
from services.gateway.domain import PredictionIds


def test_an_answer_is_found_by_the_providers_response_id() -> None:
    spans = ratchet.Spans("support", max_answers=2)
    provider = TracerProvider()
    provider.add_span_processor(spans)
    tracer = provider.get_tracer("test")
    for number in range(3):
        with tracer.start_as_current_span("chat", attributes={"gen_ai.response.id": f"chatcmpl-{number}"}) as span:
            last = span.get_span_context()
    with tracer.start_as_current_span("GET /"):
        pass
    ids = PredictionIds(b"k" * 32)
    prediction_id = spans.prediction_id("chatcmpl-2")
    assert prediction_id is not None
    assert ids.resolve(prediction_id) == ids.derive("support", f"{last.trace_id:032x}-{last.span_id:016x}")
    assert (spans.prediction_id("chatcmpl-0"), spans.prediction_id("never")) == (None, None)
    assert provider.force_flush()
    provider.shutdown()
