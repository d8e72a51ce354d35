"""Decodes OTLP, from protobuf or JSON, into plain spans. No I/O; independent of GenAI conventions.

Format: https://opentelemetry.io/docs/specs/otlp (JSON is protobuf's mapping, but ids are hex).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_SPAN_ID = re.compile(r"[0-9a-f]{16}")
_ERROR = 2

Attributes = Mapping[str, Any]
Wanted = Callable[[set[str]], bool]
"""Returns True if a span with attributes of these names is to be read: applications send all their spans."""


class MalformedTelemetry(ValueError):
    """The request body is not valid OTLP."""


@dataclass(frozen=True, slots=True)
class Span:
    """Ids are lower-case hex, times nanoseconds since 1970 (0: unknown)."""

    trace_id: str
    span_id: str
    started_ns: int
    ended_ns: int
    failed: bool
    attributes: Attributes
    resource: Attributes


def read_spans(body: bytes, *, as_json: bool, wanted: Wanted) -> Iterator[Span]:
    """Yield the wanted spans of an ExportTraceServiceRequest. Raises MalformedTelemetry."""
    request, id_text = (_decode_json(body), _id_in_json) if as_json else (_decode_protobuf(body), bytes.hex)
    for resource_group in request.resource_spans:
        resource = _attributes(resource_group.resource.attributes)
        for span in (span for scope in resource_group.scope_spans for span in scope.spans):
            if wanted({item.key for item in span.attributes}):
                yield Span(
                    trace_id=_checked_id(id_text(span.trace_id), _TRACE_ID),
                    span_id=_checked_id(id_text(span.span_id), _SPAN_ID),
                    started_ns=span.start_time_unix_nano,
                    ended_ns=span.end_time_unix_nano,
                    failed=span.status.code == _ERROR,
                    attributes=_attributes(span.attributes),
                    resource=resource,
                )


def _decode_protobuf(body: bytes) -> Any:
    try:
        return ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise MalformedTelemetry(f"the body is not a protobuf ExportTraceServiceRequest: {error}") from error


def _decode_json(body: bytes) -> Any:
    request = ExportTraceServiceRequest()
    try:
        if not isinstance(data := orjson.loads(body), dict):
            raise ValueError("it must be an object")
        ParseDict(data, request, ignore_unknown_fields=True)
    except (ParseError, ValueError, TypeError, AttributeError) as error:  # The latter two where an object is expected.
        raise MalformedTelemetry(f"the body is not the JSON of an ExportTraceServiceRequest: {error}"[:500]) from error
    return request


def _id_in_json(decoded: bytes) -> str:
    """An id as it was written: in hex, which protobuf's JSON takes for base64."""
    return b64encode(decoded).decode()


def _attributes(items: Any) -> dict[str, Any]:
    return {item.key: _value(item.value) for item in items}


def _value(value: Message) -> Any:
    """A plain value. How deep it may be nested is for protobuf's parsers to say."""
    kind = value.WhichOneof("value")
    if kind is None or kind == "bytes_value":
        return None
    content: Any = getattr(value, kind)
    if kind == "array_value":
        return [_value(item) for item in content.values]
    return _attributes(content.values) if kind == "kvlist_value" else content


def _checked_id(text: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text.lower()) or not text.strip("0"):
        digits = 32 if pattern is _TRACE_ID else 16
        raise MalformedTelemetry(f"an id must have {digits} hex digits that are not all zero")
    return text.lower()
