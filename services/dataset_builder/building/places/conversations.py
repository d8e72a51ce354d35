"""Which rows are turns of one conversation: they are held out together or trained on together. Pure.

A later turn has the earlier one's question and its answer in its input, so a model that was trained on the one is asked
about the other with an unfair hint. Conversations need no id: a later turn's messages begin with those of the earlier
one. An opening that many share ("hello") joins nothing: a beginning counts from its first answer on, and one that ends
in as many ways as templates do is a script and no conversation.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from schemas.conversation import INSTRUCTIONS, Message, Role
from schemas.datasets import Fate
from services.dataset_builder.building.places.place import Places
from services.dataset_builder.building.rows import Row
from shared.model.near_duplicates import join_pairs
from shared.model.templates import MIN_TEXTS

_KEY_BYTES = 12


class Conversations:
    """The conversations of some rows, and of held-out rows of earlier builds that are not among them."""

    def __init__(self, rows: Sequence[Row], places: Places) -> None:
        turns = {row.prediction_id: keys for row in rows if _has_answer(row) and (keys := _turns(row))}
        self._conversation: dict[str, list[str]] = {}
        if not turns:
            return
        openings = {_opening(row) for row in rows if row.prediction_id in turns}  # Others have no later turn.
        first = [row for row in rows if row.prediction_id not in turns and _opening(row) in openings]
        own = {name: keys[-1:] for name, keys in turns.items()} | {row.prediction_id: own_turn(row) for row in first}
        gone = places.keys() - {row.prediction_id for row in rows}
        own |= {name: places[name].turn.split() for name in gone if places[name].fate is Fate.EVAL}
        known_turns = {key for keys in own.values() for key in keys} - _scripts(turns.values())
        with_turn: dict[str, list[str]] = defaultdict(list)
        for name, keys in (own | turns).items():
            for key in keys:
                if key in known_turns:
                    with_turn[key].append(name)
        self._join(with_turn.values())

    def _join(self, groups: Iterable[Sequence[str]]) -> None:
        several = [group for group in groups if len(group) > 1]
        known = sorted({name for group in several for name in group})
        numbers = {name: number for number, name in enumerate(known)}
        pairs = [(numbers[group[0]], numbers[name]) for group in several for name in group[1:]]
        together: dict[int, list[str]] = defaultdict(list)
        for name, first in zip(known, join_pairs(len(known), pairs), strict=True):
            together[first].append(name)
            self._conversation[name] = together[first]

    def of(self, row: Row) -> Sequence[str]:
        """Return the predictions of a row's conversation, sorted, its own among them."""
        return self._conversation.get(row.prediction_id) or (row.prediction_id,)

    def pairs(self, rows: Sequence[Row]) -> list[tuple[int, int]]:
        """Return the indices of rows that are of the same conversation, each with the first of it."""
        first: dict[str, int] = {}
        found = []
        for index, row in enumerate(rows):
            if (conversation := self._conversation.get(row.prediction_id)) is not None:
                found.append((first.setdefault(conversation[0], index), index))
        return [(at, index) for at, index in found if at != index]

    def with_any(self, rows: Iterable[Row], names: frozenset[str]) -> dict[str, str]:
        """Return for each row in whose conversation one of these other predictions is one of them."""
        found: dict[str, str] = {}
        two_of: dict[str, list[str]] = {}
        for row in rows:
            conversation = self.of(row)
            if len(conversation) > 1:
                if conversation[0] not in two_of:
                    two_of[conversation[0]] = [name for name in conversation if name in names][:2]
                others = [name for name in two_of[conversation[0]] if name != row.prediction_id]
                if others:
                    found[row.prediction_id] = others[0]
        return found


def own_turn(row: Row) -> list[str]:
    """Return the keys by which a later turn finds this one: a first turn has one for each answer that people saw."""
    if turns := _turns(row):
        return turns[-1:]
    messages = _dialogue(row)
    given = dict.fromkeys(answer.plain for answer in row.answers)
    answered = [[*messages, Message(role=Role.ASSISTANT, content=text)] for text in given]
    return [key for whole in answered for key in _keys(whole, [len(whole)])]


def _turns(row: Row) -> list[str]:
    """Return the keys of the earlier turns of a row's conversation, and of its own last; none of a first turn."""
    messages = _dialogue(row)
    first = _first_answer(messages)
    later = [
        number
        for number in range(first + 2, len(messages))
        if messages[number].role == Role.ASSISTANT and messages[number - 1].role != Role.ASSISTANT
    ]
    return _keys(messages, [first + 1, *later, len(messages)]) if first < len(messages) else []


def _keys(messages: Sequence[Message], ends: Sequence[int]) -> list[str]:
    """Return the hash of the messages before each end, each message being read once."""
    digest, keys, start = hashlib.blake2b(digest_size=_KEY_BYTES), list[str](), 0
    for end in ends:
        for message in messages[start:end]:
            text = message.text.strip().encode("utf-8", "surrogatepass")
            digest.update(f"{message.role} {len(text)} ".encode() + text)
        start = end
        keys.append(digest.hexdigest())
    return keys


def _scripts(conversations: Iterable[Sequence[str]]) -> set[str]:
    """Return the beginnings that end in many ways. Conversations come as the keys of their turns.

    A menu of two choices goes on in two ways only, and so do all that it leads to.
    """
    whole = list(conversations)
    inner = {key for keys in whole for key in keys[:-1]}  # A later turn has it, so no conversation ends there.
    ends: dict[str, set[str]] = defaultdict(set)
    for keys in whole:
        if keys[-1] not in inner:
            for key in keys[:-1]:
                ends[key].add(keys[-1])
    return {key for key, found in ends.items() if len(found) >= MIN_TEXTS}


def _dialogue(row: Row) -> list[Message]:
    """A system message that is none of the task's own may be a document: it is part of the conversation."""
    return [m for m in row.call.messages if m.role not in INSTRUCTIONS or m.text not in row.prompts]


def _first_answer(messages: Sequence[Message]) -> int:
    """Return where the first answer to the user is; past the end if there is none. A greeting is no answer."""
    asked = False
    for number, message in enumerate(messages):
        if asked and message.role == Role.ASSISTANT:
            return number
        asked = asked or message.role == Role.USER
    return len(messages)


def _has_answer(row: Row) -> bool:
    return any(message.role == Role.ASSISTANT for message in row.call.messages)


def _opening(row: Row) -> str:
    return next((message.text for message in row.call.messages if message.role == Role.USER), "")
