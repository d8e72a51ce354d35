"""OTLP read into plain spans and log records, from protobuf and from JSON. No I/O; knows nothing of GenAI.

Format: https://opentelemetry.io/docs/specs/otlp (JSON is protobuf's mapping, but ids are hex and enums are numbers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.gateway.formats.validation import quoted

_DEEPEST = 24
"""Levels of values in values; a message of a conversation has five."""
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_SPAN_ID = re.compile(r"[0-9a-f]{16}")
_PLAIN: dict[str, Any] = {"stringValue": str, "boolValue": bool, "doubleValue": int | float | str}
"""JSON has no name for numbers that are none: protobuf writes them as "NaN"."""
_ERROR = (2, "STATUS_CODE_ERROR")

Attributes = Mapping[str, Any]
Wanted = Callable[[set[str]], bool]
"""Whether a span with attributes of these names is worth reading: an app sends spans of all that it does."""


class MalformedTelemetry(ValueError):
    """The body is not what its content type says."""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """An event of a span, or a log record about one: `data` is its attributes, and its body's fields."""

    name: str
    data: Attributes


@dataclass(frozen=True, slots=True)
class Span:
    """Ids are lower-case hex, times nanoseconds since 1970 (0: not told)."""

    trace_id: str
    span_id: str
    started_ns: int
    ended_ns: int
    failed: bool
    attributes: Attributes
    resource: Attributes
    events: tuple[SpanEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class LogRecord:
    trace_id: str
    span_id: str
    said: SpanEvent


def read_spans(body: bytes, *, as_json: bool, wanted: Wanted) -> Iterator[Span]:
    """The wanted spans of an ExportTraceServiceRequest, one by one. Raises MalformedTelemetry."""
    return _json_spans(_object(body), wanted) if as_json else _proto_spans(body, wanted)


def read_logs(body: bytes, *, as_json: bool) -> Iterator[LogRecord]:
    """Those log records of an ExportLogsServiceRequest that are events of a span. Raises MalformedTelemetry."""
    return _json_logs(_object(body)) if as_json else _proto_logs(body)


def _proto_spans(body: bytes, wanted: Wanted) -> Iterator[Span]:
    for of_resource in _parsed(ExportTraceServiceRequest(), body).resource_spans:
        resource = _proto_attributes(of_resource.resource.attributes)
        for span in (span for scope in of_resource.scope_spans for span in scope.spans):
            if wanted({item.key for item in span.attributes}):
                yield Span(
                    trace_id=_id(span.trace_id.hex(), _TRACE_ID),
                    span_id=_id(span.span_id.hex(), _SPAN_ID),
                    started_ns=span.start_time_unix_nano,
                    ended_ns=span.end_time_unix_nano,
                    failed=span.status.code in _ERROR,
                    attributes=_proto_attributes(span.attributes),
                    resource=resource,
                    events=tuple(SpanEvent(event.name, _proto_attributes(event.attributes)) for event in span.events),
                )


def _proto_logs(body: bytes) -> Iterator[LogRecord]:
    for of_resource in _parsed(ExportLogsServiceRequest(), body).resource_logs:
        for record in (record for scope in of_resource.scope_logs for record in scope.log_records):
            attributes = _proto_attributes(record.attributes)
            name = record.event_name or attributes.get("event.name")
            if name and record.trace_id and record.span_id:
                yield _record(name, record.trace_id.hex(), record.span_id.hex(), attributes, _proto_value(record.body))


def _parsed(message: Any, body: bytes) -> Any:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise MalformedTelemetry(f"the body is no {type(message).__name__} in protobuf: {error}") from error
    return message


def _proto_attributes(items: Any) -> dict[str, Any]:
    return {item.key: _proto_value(item.value) for item in items}


def _proto_value(value: Message, depth: int = 0) -> Any:
    kind = value.WhichOneof("value")
    if kind is None or kind == "bytes_value":
        return None
    told: Any = getattr(value, kind)
    if kind in ("array_value", "kvlist_value"):
        _check_depth(depth)
        if kind == "array_value":
            return [_proto_value(one, depth + 1) for one in told.values]
        return {item.key: _proto_value(item.value, depth + 1) for item in told.values}
    return told


def _json_spans(data: dict[str, Any], wanted: Wanted) -> Iterator[Span]:
    for of_resource in _list(data, "resourceSpans"):
        resource = _json_attributes(_dict(of_resource, "resource"))
        for span in (span for scope in _list(of_resource, "scopeSpans") for span in _list(scope, "spans")):
            if wanted({_text(item, "key") for item in _list(span, "attributes")}):
                yield Span(
                    trace_id=_id(span.get("traceId"), _TRACE_ID),
                    span_id=_id(span.get("spanId"), _SPAN_ID),
                    started_ns=_whole(span.get("startTimeUnixNano")),
                    ended_ns=_whole(span.get("endTimeUnixNano")),
                    failed=_dict(span, "status").get("code") in _ERROR,
                    attributes=_json_attributes(span),
                    resource=resource,
                    events=tuple(
                        SpanEvent(_text(event, "name"), _json_attributes(event)) for event in _list(span, "events")
                    ),
                )


def _json_logs(data: dict[str, Any]) -> Iterator[LogRecord]:
    for of_resource in _list(data, "resourceLogs"):
        for record in (
            record for scope in _list(of_resource, "scopeLogs") for record in _list(scope, "logRecords")
        ):  # fmt: skip
            attributes = _json_attributes(record)
            name = _text(record, "eventName") or attributes.get("event.name")
            if isinstance(name, str) and name and record.get("traceId") and record.get("spanId"):
                body = _json_value(_dict(record, "body"))
                yield _record(name, record["traceId"], record["spanId"], attributes, body)


def _record(name: str, trace_id: Any, span_id: Any, attributes: dict[str, Any], body: Any) -> LogRecord:
    data = attributes | (body if isinstance(body, dict) else {})
    return LogRecord(_id(trace_id, _TRACE_ID), _id(span_id, _SPAN_ID), SpanEvent(name, data))


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedTelemetry(f"the body is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise MalformedTelemetry("the body must be a JSON object")
    return data


def _list(data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = data.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise MalformedTelemetry(f"`{name}` must be a list of objects")
    return found


def _dict(data: dict[str, Any], name: str) -> dict[str, Any]:
    found = data.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise MalformedTelemetry(f"`{name}` must be an object")
    return found


def _text(data: dict[str, Any], name: str) -> str:
    found = data.get(name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise MalformedTelemetry(f"`{name}` must be a string")
    return found


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
        return _whole(value["intValue"])
    for kind, types in _PLAIN.items():
        if kind in value:
            if not isinstance(value[kind], types):
                raise MalformedTelemetry(f"a {kind} is none")
            return value[kind]
    return None


def _check_depth(depth: int) -> None:
    if depth >= _DEEPEST:
        raise MalformedTelemetry(f"a value has more than {_DEEPEST} levels of values in it")


def _whole(value: Any) -> int:
    """A 64-bit number, which protobuf's JSON writes as a string."""
    try:
        number = int(value or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedTelemetry(f"{quoted(value)} is no whole number") from error
    if not -(2**63) <= number < 2**64:
        raise MalformedTelemetry("a whole number is longer than 64 bits")
    return number


def _id(value: Any, pattern: re.Pattern[str]) -> str:
    text = value.lower() if isinstance(value, str) else ""
    if not pattern.fullmatch(text) or not text.strip("0"):
        digits = 32 if pattern is _TRACE_ID else 16
        raise MalformedTelemetry(f"an id is not {digits} hex digits that are not all zero")
    return text
