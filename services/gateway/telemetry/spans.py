"""Decodes OTLP, from protobuf or JSON, into plain spans. No I/O; independent of GenAI conventions.

Format: https://opentelemetry.io/docs/specs/otlp (JSON is protobuf's mapping, but ids are hex and enums are numbers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.gateway.formats.validation import quoted

_MAX_DEPTH = 24
"""Levels of nested values; a message of a conversation has five."""
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_SPAN_ID = re.compile(r"[0-9a-f]{16}")
_SCALARS: dict[str, tuple[Any, str]] = {
    "stringValue": (str, "string"), "boolValue": (bool, "boolean"), "doubleValue": (int | float | str, "number"),
}  # fmt: skip
"""A doubleValue may be a string: protobuf writes "NaN" and "Infinity" in JSON."""
_ERROR_CODES = (2, "STATUS_CODE_ERROR")

Attributes = Mapping[str, Any]
Wanted = Callable[[set[str]], bool]
"""Returns True if a span with attributes of these names is to be read: applications send all their spans."""


class MalformedTelemetry(ValueError):
    """The request body is not valid OTLP."""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """An event of a span. `data`: its attributes."""

    name: str
    data: Attributes


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
    events: tuple[SpanEvent, ...] = ()


def read_spans(body: bytes, *, as_json: bool, wanted: Wanted) -> Iterator[Span]:
    """Yield the wanted spans of an ExportTraceServiceRequest. Raises MalformedTelemetry."""
    return _json_spans(_decode_json(body), wanted) if as_json else _proto_spans(body, wanted)


def _proto_spans(body: bytes, wanted: Wanted) -> Iterator[Span]:
    for resource_group in _decode_protobuf(ExportTraceServiceRequest(), body).resource_spans:
        resource = _proto_attributes(resource_group.resource.attributes)
        for span in (span for scope in resource_group.scope_spans for span in scope.spans):
            if wanted({item.key for item in span.attributes}):
                yield Span(
                    trace_id=_id(span.trace_id.hex(), _TRACE_ID),
                    span_id=_id(span.span_id.hex(), _SPAN_ID),
                    started_ns=span.start_time_unix_nano,
                    ended_ns=span.end_time_unix_nano,
                    failed=span.status.code in _ERROR_CODES,
                    attributes=_proto_attributes(span.attributes),
                    resource=resource,
                    events=tuple(SpanEvent(event.name, _proto_attributes(event.attributes)) for event in span.events),
                )


def _decode_protobuf(message: Any, body: bytes) -> Any:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise MalformedTelemetry(f"the body is not a protobuf {type(message).__name__}: {error}") from error
    return message


def _proto_attributes(items: Any) -> dict[str, Any]:
    return {item.key: _proto_value(item.value) for item in items}


def _proto_value(value: Message, depth: int = 0) -> Any:
    kind = value.WhichOneof("value")
    if kind is None or kind == "bytes_value":
        return None
    content: Any = getattr(value, kind)
    if kind in ("array_value", "kvlist_value"):
        _check_depth(depth)
        if kind == "array_value":
            return [_proto_value(item, depth + 1) for item in content.values]
        return {item.key: _proto_value(item.value, depth + 1) for item in content.values}
    return content


def _json_spans(data: dict[str, Any], wanted: Wanted) -> Iterator[Span]:
    for resource_group in _list(data, "resourceSpans"):
        resource = _json_attributes(_dict(resource_group, "resource"))
        for span in (span for scope in _list(resource_group, "scopeSpans") for span in _list(scope, "spans")):
            if wanted({_text(item, "key") for item in _list(span, "attributes")}):
                yield Span(
                    trace_id=_id(span.get("traceId"), _TRACE_ID),
                    span_id=_id(span.get("spanId"), _SPAN_ID),
                    started_ns=_integer(span.get("startTimeUnixNano")),
                    ended_ns=_integer(span.get("endTimeUnixNano")),
                    failed=_dict(span, "status").get("code") in _ERROR_CODES,
                    attributes=_json_attributes(span),
                    resource=resource,
                    events=tuple(
                        SpanEvent(_text(event, "name"), _json_attributes(event)) for event in _list(span, "events")
                    ),
                )


def _decode_json(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedTelemetry(f"the body is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise MalformedTelemetry("the body must be a JSON object")
    return data


def _list(data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = data.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise MalformedTelemetry(f"`{name}` must be a list of objects")
    return value


def _dict(data: dict[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedTelemetry(f"`{name}` must be an object")
    return value


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedTelemetry(f"`{name}` must be a string")
    return value


def _json_attributes(data: dict[str, Any]) -> dict[str, Any]:
    return {_text(item, "key"): _json_value(_dict(item, "value")) for item in _list(data, "attributes")}


def _json_value(value: dict[str, Any], depth: int = 0) -> Any:
    if "arrayValue" in value:
        _check_depth(depth)
        return [_json_value(item, depth + 1) for item in _list(_dict(value, "arrayValue"), "values")]
    if "kvlistValue" in value:
        _check_depth(depth)
        items = _list(_dict(value, "kvlistValue"), "values")
        return {_text(item, "key"): _json_value(_dict(item, "value"), depth + 1) for item in items}
    if "intValue" in value:
        return _integer(value["intValue"])
    for kind, (types, expected) in _SCALARS.items():
        if kind in value:
            if not isinstance(value[kind], types):
                raise MalformedTelemetry(f"{kind}: expected a {expected}")
            return value[kind]
    return None


def _check_depth(depth: int) -> None:
    if depth >= _MAX_DEPTH:
        raise MalformedTelemetry(f"a value is nested more than {_MAX_DEPTH} levels deep")


def _integer(value: Any) -> int:
    """A 64-bit integer, which protobuf's JSON writes as a string."""
    try:
        number = int(value or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedTelemetry(f"{quoted(value)} is not a whole number") from error
    if not -(2**63) <= number < 2**64:
        raise MalformedTelemetry("a whole number does not fit in 64 bits")
    return number


def _id(value: Any, pattern: re.Pattern[str]) -> str:
    text = value.lower() if isinstance(value, str) else ""
    if not pattern.fullmatch(text) or not text.strip("0"):
        digits = 32 if pattern is _TRACE_ID else 16
        raise MalformedTelemetry(f"an id must have {digits} hex digits that are not all zero")
    return text
