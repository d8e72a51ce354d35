"""No held-out question leaks through its conversation, whatever of the history a request brings.

Conversations of six questions, each question with the history before it. Half of the corrections are audits. A held-out
row leaks if its conversation is trained on, in this build or an earlier one, or, of an unseen row, if its question
stands in the input of a training row, of this build or a later one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Example
from schemas.labels import CorrectionSubmitted, Purpose
from services.dataset_builder.building.places import Place
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Inputs, build_dataset
from tests.benchmarks.dataset.made import LABELS, SPEC, audit, sentence
from tests.benchmarks.table import Grid, Measured

CONVERSATIONS, TURNS = 200, 6
_KEPT = 2
"""Builds that have a turn: then its text has expired, and its place is known."""
Reshape = Callable[[Sequence[Message], int], Sequence[Message]]


@dataclass(frozen=True)
class Shape:
    """How requests bring their history. `builds`: turns arrive in so many, the last ones first of some."""

    name: str
    reshape: Reshape = lambda messages, number: messages
    has_session: bool = False
    builds: int = 1


@dataclass
class Leaks:
    """What several builds made of a shape's corrections."""

    trained: set[str] = field(default_factory=set)
    held_out: set[str] = field(default_factory=set)
    unseen: dict[str, str] = field(default_factory=dict)
    leaking: set[str] = field(default_factory=set)

    def add(self, train: Sequence[Example], evaluation: Sequence[Example]) -> None:
        inputs = [_folded(" ".join(message.text for message in row.prompt)) for row in train]
        self.trained |= {row.prediction_ids[0] for row in train}
        self.held_out |= {row.prediction_ids[0] for row in evaluation}
        conversations = {_place(name)[0] for name in self.trained}
        self.leaking |= {name for name in self.held_out if _place(name)[0] in conversations}
        unseen = (row.prediction_ids[0] for row in evaluation if not row.seen)
        self.unseen |= {name: _question(*_place(name)) for name in unseen}
        self.leaking |= {name for name, question in self.unseen.items() if any(question in text for text in inputs)}


def measure(conversations: int = CONVERSATIONS) -> tuple[list[Measured], list[Grid]]:
    """Return the leaks of each shape. Where hardly anything is held out nothing could leak: that is an aim, too."""
    found = {shape.name: _built(shape, conversations) for shape in SHAPES}
    leaking = [Measured(f"leaks, {name}", "rows", len(leaks.leaking), max_value=0) for name, leaks in found.items()]
    fewest = min(len(leaks.held_out) for leaks in found.values()) / (conversations * TURNS)
    rows = [(name, *(str(len(part)) for part in (f.trained, f.held_out, f.leaking))) for name, f in found.items()]
    measured = [*leaking, Measured("conversations: held out, fewest of a shape", "share", fewest, min_value=0.1)]
    columns = ("history", "trained on", "held out", "leaking")
    return measured, [Grid(f"{conversations} conversations of {TURNS} turns", columns, rows)]


def _built(shape: Shape, conversations: int) -> Leaks:
    turns = [_turn(shape, talk, turn) for talk in range(conversations) for turn in range(TURNS)]
    leaks, places = Leaks(), dict[str, Place]()
    for build in range(shape.builds):
        there = [row for row in turns if 0 <= build - _arrives(*_place(row.prediction_id), shape.builds) < _KEPT]
        made = build_dataset(Inputs(votes_of(there), SPEC, places))
        places |= made.places
        leaks.add(made.dataset.train, made.dataset.eval)
    return leaks


def _arrives(talk: int, turn: int, builds: int) -> int:
    return (talk + turn * builds // TURNS) % builds


def _turn(shape: Shape, talk: int, turn: int) -> CorrectionSubmitted:
    number, messages = talk * TURNS + turn, [Message(role=Role.SYSTEM, content=SPEC.system_prompt)]
    for earlier in range(turn):
        messages += [
            Message(role=Role.USER, content=_question(talk, earlier)),
            Message(role=Role.ASSISTANT, content=_answer(talk, earlier)),
        ]
    messages.append(Message(role=Role.USER, content=_question(talk, turn)))
    is_audit = {} if number % 2 else {"purpose": Purpose.LOW_CONFIDENCE, "drawn_probability": None}
    return audit(
        number, f"{talk}-{turn}", Call(messages=tuple(shape.reshape(messages, number))), LABELS[number % 3],
        answers=(Answer(text=_answer(talk, turn)),), session_hash=f"s{talk}" if shape.has_session else None, **is_audit,
    )  # fmt: skip


def _question(talk: int, turn: int) -> str:
    return sentence(1_000 * talk + turn)


def _answer(talk: int, turn: int) -> str:
    return f"Done: {_question(talk, turn).split()[0]}"


def _place(name: str) -> tuple[int, int]:
    talk, turn = map(int, name.split("-"))
    return talk, turn


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _with_clock(messages: Sequence[Message], number: int) -> list[Message]:
    clock = f"{SPEC.system_prompt} It is {number // 60 % 24:02}:{number % 60:02}."
    return [Message(role=Role.SYSTEM, content=clock), *messages[1:]]


def _respaced(messages: Sequence[Message], number: int) -> list[Message]:
    """Each request writes its history in a way of its own."""
    space, case = ("  ", "\n", "\t")[number % 3], (str.upper, str.title)[number // 3 % 2]
    return [Message(role=message.role, content=f" {case(space.join(message.text.split()))}\n") for message in messages]


def _in_one_message(messages: Sequence[Message], number: int) -> list[Message]:
    return [Message(role=Role.USER, content="\n".join(f"{message.role}: {message.text}" for message in messages))]


SHAPES = (
    Shape("a clock in the system message", _with_clock),
    Shape("the last five messages alone", lambda messages, number: messages[-5:]),
    Shape("in other letters and spacing", _respaced),
    Shape("in one message, with the session's hash", _in_one_message, has_session=True),
    Shape("as it was, without the session's hash"),
    Shape("turns that arrive in three builds", builds=3),
)
