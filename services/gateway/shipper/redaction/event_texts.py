"""Finds the texts of an event that are to be redacted: all but those that `allowed.py` names. Pure.

A text knows its place, so that what replaces it is put there. Names of free JSON and long numbers are texts, too.
"""

from __future__ import annotations

import re
from typing import Any

from schemas.base import MAX_TEXT
from services.gateway.shipper.redaction.allowed import KNOWN_ROLE, OWNERS, PLACES, Kind, Place, Places
from services.gateway.shipper.redaction.binary import without_base64
from shared.conversation.requests import TOKEN_IDS
from shared.privacy.redaction.cues import cue_of, digits_of, is_identifier
from shared.privacy.redaction.json_texts import (
    JsonLiteral,
    literals,
    literals_of_answer,
    literals_of_result,
    number_text,
    with_replacements,
)

_MAX_ALLOWED = 300
"""Characters of the longest value that a pattern is asked about."""
_SHORT = 64
"""Characters that every text of an event may have: the contract's limit of the names of metadata is the lowest."""
_MAX_METADATA_VALUE = 512
"""The contract's limit of a text of metadata."""
_MAX_ROLE = 32
"""The contract's limit of a role, which has letters, digits, `_` and `-`, a letter first."""
_OTHER_ROLE = "other"
_NUMBER_OF_ROLE = re.compile(r"(?:[0-9][_-]*){6,}")
"""Enough digits to be somebody's. Names of templates have none, and no number is found inside of a word."""
_BETWEEN_WORDS_OF_ROLE = re.compile(r"[_-]+|(?<=[a-z])(?=[A-Z])")
_NO_WORD_OF_ROLE = re.compile(r"[^A-Za-z0-9]+")
_NO_START_OF_ROLE = re.compile(r"^[^A-Za-z]+")
_NUMBERS = (int, float)
_MAX_NUMBER = 2**63 - 1


def leave_out_unreadable(call: dict[str, Any]) -> bool:
    """Leave out of a call, and mark, what the redactor cannot read; return whether there was any.

    That are the token ids of prompts, which whoever has the model's tokenizer can read, and long numbers in roles.
    """
    token_ids, numbers = _leave_out_token_ids(call), _leave_out_numbers_of_roles(call)
    if token_ids or numbers:
        call["truncated"] = True
    return token_ids or numbers


def _leave_out_numbers_of_roles(call: dict[str, Any]) -> bool:
    found = False
    for message in call["messages"]:
        role = message.get("role")
        if isinstance(role, str) and not KNOWN_ROLE(role) and (cut := _NUMBER_OF_ROLE.sub("0", role)) != role:
            message["role"] = cut
            found = True
    return found


def _leave_out_token_ids(call: dict[str, Any]) -> bool:
    contents = [message.get("content") for message in call["messages"]]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    found = [part for part in parts if isinstance(part, dict) and part.get("type") == TOKEN_IDS]
    for part in found:
        part.pop("text", None)
    return bool(found)


class EventText:
    """A text at `holder[name]`. What is redacted is `text` behind its cue, which has `cue_length` characters.

    `max_length`: of what replaces it.
    """

    __slots__ = ("cue_length", "holder", "max_length", "name", "text")

    def __init__(self, holder: Any, name: Any, text: str, cue: str = "", max_length: int = MAX_TEXT) -> None:
        self.holder = holder
        self.name = name
        self.text = cue + text
        self.cue_length = len(cue)
        self.max_length = max_length

    def put(self, redacted: str) -> None:
        """Put what replaces the text in its place."""
        self.holder[self.name] = redacted[: self.max_length]


class EventNumber(EventText):
    """A long number of free JSON; what replaces it is a number of the same type."""

    __slots__ = ()

    def put(self, redacted: str) -> None:
        kind = type(self.holder[self.name])
        number = kind(number_text(redacted, whole=kind is int))
        self.holder[self.name] = number if abs(number) <= _MAX_NUMBER else kind(_MAX_NUMBER)


class EventRole(EventText):
    """A role that is none of the usual ones. It is redacted as words, and what replaces it is a role, too."""

    __slots__ = ()

    def __init__(self, holder: Any, name: Any, role: str) -> None:
        super().__init__(holder, name, _BETWEEN_WORDS_OF_ROLE.sub(" ", role), max_length=_MAX_ROLE)

    def put(self, redacted: str) -> None:
        super().put(_NO_START_OF_ROLE.sub("", _NO_WORD_OF_ROLE.sub("_", redacted)) or _OTHER_ROLE)


class EventName(EventText):
    """A name of free JSON. Its entry gets the other name when all values are in place: `TextFinder.finish`."""

    __slots__ = ("replacement",)

    def __init__(self, holder: dict[str, Any], name: str) -> None:
        super().__init__(holder, name, name, max_length=max(len(name), _SHORT))
        self.replacement = name

    def put(self, redacted: str) -> None:
        self.replacement = redacted[: self.max_length]


class TextFinder:
    """Collects the texts of one event. `own_texts`: those of the task, its prompt and labels, which are nobody's.

    `left_out`: something was left out, such as base64; the call or the answer that had it is marked as truncated.
    """

    __slots__ = ("_arguments", "_names", "_own_texts", "_owner", "left_out", "texts")

    def __init__(self, own_texts: frozenset[str]) -> None:
        self.texts: list[EventText | JsonLiteral] = []
        self.left_out = False
        self._own_texts = own_texts
        self._names: list[EventName] = []
        self._arguments: list[tuple[Any, Any, list[JsonLiteral]]] = []
        self._owner: Any = None

    def find(self, event: dict[str, Any], topic: str) -> None:
        """Collect the texts. Raises RecursionError for an event that is nested too deeply."""
        self._object(event, PLACES[topic])
        for name, places in OWNERS.get(topic, {}).items():
            owners = event[name]
            for owner in owners if isinstance(owners, list) else (owners,):
                self._owner = owner
                self._object(owner, places)

    def finish(self) -> None:
        """Put what consists of several texts in its place, when all texts are."""
        for holder, name, found in self._arguments:
            holder[name] = with_replacements(holder[name], found)
        for renamed in self._names:
            if renamed.replacement != renamed.name:
                _rename(renamed.holder, renamed.name, renamed.replacement)

    def _object(self, data: dict[str, Any], places: Places) -> None:
        """Collect what the entries of `data` have."""
        for name, value in data.items():
            place = places.get(name)
            if place is None:
                self._free(data, name, value, Kind.FREE)
                continue
            kind = type(value)
            if kind is str:
                if not (callable(place) and len(value) <= _MAX_ALLOWED and place(value)):
                    self._text(data, name, value, place, name)
            elif value and (kind is dict or kind is list or place is not Kind.NUMBER):
                self._value(data, name, value, place, name)

    def _free(self, data: dict[str, Any], name: str, value: Any, place: Place) -> None:
        """Collect what an entry of free JSON has, its name too."""
        if not is_identifier(name) and name not in self._own_texts:
            found = EventName(data, name)
            self._names.append(found)
            self.texts.append(found)
        self._value(data, name, value, place, name)

    def _value(self, holder: Any, index: Any, value: Any, place: Place, name: str) -> None:
        """Collect what `holder[index]` has. `name`: what it is called; an item of a list is called as the list is."""
        kind = type(value)
        if kind is str:
            self._text(holder, index, value, place, name)
        elif kind is dict:
            if isinstance(place, dict):
                self._object(value, place)
            elif place is not Kind.OWNER:
                inner = place if place in (Kind.SCHEMA, Kind.METADATA, Kind.NUMBER) else Kind.FREE
                for inner_name, inner_value in value.items():
                    self._free(value, inner_name, inner_value, inner)
        elif kind is list:
            for number, item in enumerate(value):
                self._value(value, number, item, place, name)
        elif kind in _NUMBERS and place is not Kind.NUMBER and (digits := digits_of(value)) is not None:
            self.texts.append(EventNumber(holder, index, digits, cue_of(name)))

    def _text(self, holder: Any, index: Any, value: str, place: Place, name: str) -> None:
        """Collect a text that does not match the pattern of its place, if that has one."""
        if not value or value in self._own_texts:
            return
        if place is KNOWN_ROLE:
            self.texts.append(EventRole(holder, index, value))
            return
        found = None
        if place is Kind.ARGUMENTS:
            found = literals(value)
        elif place is Kind.ANSWER:
            found = literals_of_answer(value)
        elif place is not Kind.NAME and place is not Kind.METADATA and not callable(place):
            found = literals_of_result(value)
        if found is not None:
            self._add_arguments(holder, index, found)
            return
        cue = cue_of(name) if place in (Kind.FREE, Kind.METADATA) else ""
        max_length = MAX_TEXT
        if place is Kind.METADATA:
            max_length = _MAX_METADATA_VALUE
        elif place is Kind.NAME or callable(place) or (cue and self._owner is None):
            max_length = max(len(value), _SHORT)
        self._add(EventText(holder, index, value, cue, max_length))

    def _add(self, found: EventText | JsonLiteral) -> None:
        text = found.text
        if (cut := without_base64(text)) is not text:
            found.text = cut
            found.put(cut[found.cue_length :])
            self.left_out = True
            if self._owner is not None:
                self._owner["truncated"] = True
        self.texts.append(found)

    def _add_arguments(self, holder: Any, index: Any, found: list[JsonLiteral]) -> None:
        self._arguments.append((holder, index, found))
        for literal in found:
            if literal.text[literal.cue_length :] not in self._own_texts:
                self._add(literal)


def _rename(holder: dict[str, Any], name: str, replacement: str) -> None:
    """Give an entry another name, in its place. Two entries never become one."""
    entries = list(holder.items())
    free, number = replacement, 2
    while free in holder:
        free, number = f"{replacement}_{number}", number + 1
    holder.clear()
    holder.update((free if key == name else key, value) for key, value in entries)
