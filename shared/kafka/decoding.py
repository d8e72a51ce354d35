"""Events as flat structs, for who handles very many: the class's own rules, without making its objects.

A third of the class's time: msgspec makes no UUID, enum or model objects, and none that Python's collector looks at.
The rules are taken from the class, field by field. What this refuses, or does not know, is tried by the class itself,
so nothing is refused here that is allowed there: a UUID in an unusual spelling, a newer producer's field.
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
from pydantic import AwareDatetime, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from schemas.base import Event
from shared.errors import InvalidMessage, describe_validation_error

Plain = Any
"""An event's fields as attributes: text, numbers, datetimes, tuples, structs; enums as their values, UUIDs as text."""

_UUID = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
_SEVENTH = slice(26, 27)
"""Of the digits of a second. msgspec rounds by it, pydantic cuts it off: such times are the class's."""
_BOUNDS = {"ge", "gt", "le", "lt", "min_length", "max_length"}


class Decoder:
    """JSON of one class of events → structs with all its fields."""

    def __init__(self, event: type[Event]) -> None:
        self._event = event
        self._struct = _struct_of(event, frozen=False)
        self._decode = msgspec.json.Decoder(self._struct).decode
        self._times = [name for name, info in event.model_fields.items() if info.annotation is AwareDatetime]

    def __call__(self, value: bytes) -> Plain:
        """One event. Raises InvalidMessage when it is none."""
        try:
            return self._with_times(self._decode(value))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # The class has the last word.
        try:
            whole = self._event.model_validate_json(value)
        except ValidationError as error:
            raise InvalidMessage(f"not a valid {self._event.__name__}: {describe_validation_error(error)}") from error
        return self.plain(whole)

    def plain(self, event: Event) -> Plain:
        """The same of an event that is already there, defaults filled in."""
        return self._with_times(msgspec.convert(event.model_dump(mode="json"), self._struct))

    def _with_times(self, plain: Plain) -> Plain:
        for name in self._times:
            text = getattr(plain, name)
            time = msgspec.convert(text, datetime)
            if time.tzinfo is None or text[_SEVENTH].isdigit():
                raise msgspec.ValidationError("no time zone, or more digits than microseconds have")
            setattr(plain, name, time)
        return plain


def _struct_of(model: type[BaseModel], frozen: bool) -> type[msgspec.Struct]:
    fields: list[Any] = []
    for name, info in model.model_fields.items():
        kind = _constrained(info.annotation, info.metadata)
        if info.is_required() or info.default_factory is not None:  # What has to be made is made by the class.
            fields.append((name, kind))
        else:
            fields.append((name, kind, _default(info.default)))
    return msgspec.defstruct(
        model.__name__, fields, kw_only=True, frozen=frozen, gc=False, forbid_unknown_fields=True, eq=True
    )


def _default(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return msgspec.convert(value.model_dump(mode="json"), _struct_of(type(value), frozen=True))
    return value.value if isinstance(value, Enum) else value


def _constrained(kind: Any, rules: Sequence[Any]) -> Any:
    if get_origin(kind) in (Union, types.UnionType):  # The rules are for what is there, if anything is.
        some = [one if one is types.NoneType else _constrained(one, rules) for one in get_args(kind)]
        return Union[tuple(some)]  # noqa: UP007 - the arguments are only known here
    bounds: dict[str, Any] = {}
    for rule in _flat(rules):
        found = {name: value for name, value in _attributes(rule).items() if value is not None}
        if "pattern" in found:
            found["pattern"] = _whole(found["pattern"])
        if strange := found.keys() - _BOUNDS - {"pattern"}:
            raise TypeError(f"{rule!r}: {strange} is a rule that shared/kafka/decoding.py does not know")
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


def _whole(pattern: str) -> str:
    """`$` ends Rust's text, and lets a last line break pass in Python's."""
    return pattern[:-1] + r"\Z" if pattern.endswith("$") and not pattern.endswith(r"\$") else pattern


def _kind(kind: Any) -> Any:
    """`kind` with models, enums and UUIDs replaced by what JSON has for them."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _constrained(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return _constrained(kind, ())
    if origin is tuple:
        return tuple[_kind(arguments[0]), ...]  # type: ignore[misc]  # likewise
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _struct_of(kind, frozen=True)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return Literal[tuple(one.value for one in kind)]
    if kind is UUID:
        return _UUID
    if kind is AwareDatetime:
        return str
    if origin is Literal or kind in (str, int, float, bool, types.NoneType):
        return kind
    raise TypeError(f"{kind!r} is a type that shared/kafka/decoding.py does not know")
