"""A fast decoder of events for consumers of very many: structs that are checked by the event class's own rules.

It takes a third of the class's time: msgspec makes no UUID, enum or model objects, and none that Python's garbage
collector tracks. The rules are taken from the class, field by field. What the decoder refuses or does not know is
decoded by the class itself, so that nothing is refused that the class allows: a UUID in an unusual spelling, say, or a
newer producer's field. Their JSON (`msgspec.json.encode`) is compact: fields that have their default are left out.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import msgspec
from annotated_types import GroupedMetadata
from msgspec import Meta
from pydantic import AwareDatetime, BaseModel, JsonValue
from pydantic.fields import FieldInfo

from schemas.base import Event
from shared.kafka.delivery import decode_event

Plain = Any
"""An event's fields as attributes: text, numbers, datetimes, tuples, structs; enums as their values, UUIDs as text."""

_UUID = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
# The seventh decimal of a second. msgspec rounds by it, pydantic cuts it off: the class decodes such times.
_SEVENTH_DIGIT = slice(26, 27)
_BOUNDS = {"ge", "gt", "le", "lt", "min_length", "max_length"}


class Decoder:
    """Decodes the JSON of one event class into structs with all its fields."""

    def __init__(self, event: type[Event]) -> None:
        self._event = event
        self._struct = _struct_of(event, frozen=False)
        self._decode = msgspec.json.Decoder(self._struct).decode
        self._times = [name for name, info in event.model_fields.items() if info.annotation is AwareDatetime]

    def __call__(self, value: bytes) -> Plain:
        """Decode one event. Raises InvalidMessage when it is not valid."""
        try:
            return self._with_times(self._decode(value))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # The class decides.
        return self.plain(decode_event(self._event, value))

    def plain(self, event: Event) -> Plain:
        """Return the struct of an event that is already decoded, with defaults filled in."""
        return self._with_times(msgspec.convert(event.model_dump(mode="json"), self._struct))

    def _with_times(self, plain: Plain) -> Plain:
        for name in self._times:
            text = getattr(plain, name)
            time = msgspec.convert(text, datetime)
            if time.tzinfo is None or text[_SEVENTH_DIGIT].isdigit():
                raise msgspec.ValidationError("no time zone, or more digits than microseconds have")
            setattr(plain, name, time)
        return plain


def _struct_of(model: type[BaseModel], frozen: bool) -> type[msgspec.Struct]:
    fields: list[Any] = []
    for name, info in model.model_fields.items():
        kind = _constrained(info.annotation, info.metadata)
        if info.default_factory is dict:
            fields.append((name, kind, msgspec.field(default_factory=dict)))
        elif info.is_required() or info.default_factory is not None:  # Other factories are called by the class.
            fields.append((name, kind))
        else:
            fields.append((name, kind, _default(info.default)))
    return msgspec.defstruct(
        model.__name__, fields, kw_only=True, frozen=frozen, gc=False, forbid_unknown_fields=True, omit_defaults=True
    )


def _default(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return msgspec.convert(value.model_dump(mode="json"), _struct_of(type(value), frozen=True))
    return value.value if isinstance(value, Enum) else value


def _constrained(kind: Any, rules: Sequence[Any]) -> Any:
    if get_origin(kind) in (Union, types.UnionType):  # The rules apply to the value, if there is one.
        members = [member if member is types.NoneType else _constrained(member, rules) for member in get_args(kind)]
        return Union[tuple(members)]  # noqa: UP007 - the arguments are only known here
    bounds: dict[str, Any] = {}
    for rule in _flat(rules):
        found = {name: value for name, value in _attributes(rule).items() if value is not None}
        if "pattern" in found:
            found["pattern"] = _anchored(found["pattern"])
        if unknown := found.keys() - _BOUNDS - {"pattern"}:
            raise TypeError(f"{rule!r}: shared/kafka/decoding.py does not know the rule {unknown}")
        bounds |= found
    return Annotated[_kind(kind), Meta(**bounds)] if bounds else _kind(kind)


def _flat(rules: Iterable[Any]) -> Iterator[Any]:
    for rule in rules:
        if isinstance(rule, FieldInfo):
            yield from _flat(rule.metadata)
        elif isinstance(rule, GroupedMetadata):
            yield from _flat(rule)
        else:
            yield rule


def _attributes(rule: Any) -> dict[str, Any]:
    slots = getattr(type(rule), "__dataclass_fields__", None)
    return {name: getattr(rule, name) for name in slots} if slots else dict(vars(rule))


def _anchored(pattern: str) -> str:
    """Replace a final `$`, which in Python, unlike in pydantic's Rust, lets a last line break pass."""
    return pattern[:-1] + r"\Z" if pattern.endswith("$") and not pattern.endswith(r"\$") else pattern


def _kind(kind: Any) -> Any:
    """Return the type with models, enums and UUIDs replaced by what JSON has for them."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _constrained(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return _constrained(kind, ())
    if kind is JsonValue:
        return Any
    if origin is dict:
        return dict[_kind(arguments[0]), _kind(arguments[1])]  # type: ignore[misc]  # likewise
    if origin is tuple:
        return tuple[_kind(arguments[0]), ...]  # type: ignore[misc]  # likewise
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _struct_of(kind, frozen=True)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return Literal[tuple(member.value for member in kind)]
    if kind is UUID:
        return _UUID
    if kind is AwareDatetime:
        return str
    if origin is Literal or kind in (str, int, float, bool, types.NoneType):
        return kind
    raise TypeError(f"shared/kafka/decoding.py does not know the type {kind!r}")
