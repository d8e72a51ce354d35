"""Sketches of questions, which are conversations: what the user asked last, and what it was asked about.

Applications put documents into system messages, and instructions; conversations have a beginning, calls and results.
Two questions about one document differ, and so do the summaries of two documents, and the same "yes" after two
beginnings; a date or a customer's name in an instruction makes no other question. So what was asked and what it was
asked about count as much as each other, however long they are: questions are near where both are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from schemas.conversation import INSTRUCTIONS, Message, Role
from schemas.task_settings import DatasetSettings
from shared.conversation import MAX_COMPARED, asked_or_documents, ends_of
from shared.model.near_duplicates import with_bands
from shared.model.sketches import MAX_SHINGLES, Sketch, Sketches, mixed, sketch_folded
from shared.model.templates import MIN_TEXTS, Templates, find_templates
from shared.model.texts import Hashes, fold, text_hash

_LEAST_DOCUMENT = 48
"""Shingles of its own that a document has: a date and a name have fewer."""
_LEAST_SAMPLE = 32
"""Of what a shorter question is about: of fewer shingles most might have a typo."""
_MOST_SAMPLE = MAX_SHINGLES // 2 - 1
"""Of either part. Both together are no sample of one text."""
_CONTEXT = np.uint32(0x9E3779B1)
"""Odd: keeps shingles of what was asked about apart from those of what was asked."""

Question = tuple[tuple[str, str], ...]
"""Role and text of each message but the task's own system prompts: cheap to compare, and to send to a process."""


def question_of(messages: Iterable[Message], prompts: Container[str]) -> Question:
    """Return what is sketched of a conversation. `prompts`: the task's own system prompts."""
    return tuple([(m.role, m.text) for m in messages if m.role not in INSTRUCTIONS or m.text not in prompts])


@dataclass(frozen=True)
class QuestionsToSketch:
    """All of a task's questions, each once. `user_part`: the task's `dataset.user_part`; where it matches, what it
    matches is what is compared. `similarity`: from which questions are near each other."""

    questions: Sequence[Question]
    user_part: str | None
    similarity: float


class Sketched(NamedTuple):
    """The sketches of those questions, in order, and what they were made by."""

    sketcher: QuestionSketcher
    sketches: Sketches


def sketch_questions(asked: QuestionsToSketch) -> Sketched:
    """Sketch questions by what all of them have in common, which is not compared."""
    sketcher = QuestionSketcher(asked.questions, asked.user_part)
    portions = [with_bands(portion, asked.similarity) for portion in sketcher.sketch_all(asked.questions)]
    return Sketched(sketcher, Sketches.joined(portions))


BeginSketches = Callable[[QuestionsToSketch], Callable[[], Sketched]]
"""Begins to sketch questions, and returns what waits for their sketches."""


def sketch_here(asked: QuestionsToSketch) -> Callable[[], Sketched]:
    """Sketch questions in this process, once somebody waits for it."""
    return lambda: sketch_questions(asked)


class QuestionSketches:
    """Sketches of a task's questions that are being made, maybe by another process meanwhile."""

    def __init__(
        self, questions: Iterable[Question], settings: DatasetSettings, begin: BeginSketches = sketch_here
    ) -> None:
        """`questions`: all of them, in any order; copies count once. `settings`: of the task."""
        # What `user_part` matches may be in the middle of a text.
        self._shorten = _shortened if settings.user_part is None else _as_it_is
        distinct = dict.fromkeys(map(self._shorten, questions))
        self._numbers = {question: number for number, question in enumerate(distinct)}
        asked = QuestionsToSketch(list(self._numbers), settings.user_part, settings.near_copy_similarity)
        self._waiting = [begin(asked)]

    def take(self, questions: Iterable[Question]) -> tuple[QuestionSketcher, Iterator[Sketches]]:
        """Return the sketches of some questions, in portions, and what they were made by.

        One that was not among all of them is sketched now. Call it once: nothing is kept here, for the sketches of a
        large task are 50 MB.
        """
        known, others = self._numbers, dict[Question, int]()
        numbers = [
            number
            if (number := known.get(question)) is not None
            else others.setdefault(question, len(known) + len(others))
            for question in map(self._shorten, questions)
        ]
        sketcher, sketches = self._waiting.pop()()
        if others:
            sketches = Sketches.joined([sketches, Sketches.of([sketcher.sketch(question) for question in others])])
        self._numbers = {}
        return sketcher, sketches.at(np.array(numbers, dtype=np.int64))


def _shortened(question: Question) -> Question:
    """Return a question whose texts have no more than is compared of one: it may go to another process."""
    if all([len(text) <= MAX_COMPARED for _, text in question]):
        return question
    return tuple([(role, ends_of(text)) for role, text in question])


def _as_it_is(question: Question) -> Question:
    return question


class _Parts(NamedTuple):
    """What was asked, a system message that may be a document, and the other messages: folded, "" for none."""

    asked: str
    document: str = ""
    rest: str = ""


class QuestionSketcher:
    """Sketches questions by what all of a task's questions have in common, which is not compared."""

    def __init__(self, questions: Iterable[Question], user_part: str | None) -> None:
        """`questions`: all of them. `user_part`: see `QuestionsToSketch`."""
        self._user_part = user_part
        self._not_compared = _shared_system_texts(questions)
        self._templates = [Templates()] * 3

    def sketch_all(self, questions: Iterable[Question]) -> Iterator[Sketches]:
        """Find the templates of all the questions, and yield their sketches, in order and in portions."""
        columns: tuple[list[str], list[str], list[str]] = ([], [], [])
        for question in questions:
            for column, text in zip(columns, self._parts(question), strict=True):
                column.append(text)
        self._templates = [find_templates(texts) for texts in columns]
        return _sketch_together(*columns, self._templates)

    def sketch(self, question: Question) -> Sketch:
        """Return the sketch of what is compared of one of the questions."""
        return _sketch_one(self._parts(question), self._templates)

    def sketch_whole(self, question: Question) -> Sketch:
        """Return the sketch of all of a question: for when a template that it is behind, or `user_part`, is gone."""
        return _sketch_one(_parts_of(question), [Templates()] * 3)

    def _parts(self, question: Question) -> _Parts:
        if self._user_part is not None:
            return _Parts(fold(_user_part_of(question, self._user_part, self._not_compared)))
        return _parts_of(question, self._not_compared)


def _parts_of(question: Question, not_compared: Container[str] = ()) -> _Parts:
    """The last messages of the user in a row are what was asked. What is about a question follows from all the rest."""
    if len(question) == 1 and question[0][0] == Role.USER:  # Nearly all of them.
        return _Parts(fold(ends_of(question[0][1])))
    others = [message for message in question if message[0] not in INSTRUCTIONS]
    last = len(others)
    while last and others[last - 1][0] != Role.USER:
        last -= 1
    first = last
    while first and others[first - 1][0] == Role.USER:
        first -= 1
    system = (text for role, text in question if role in INSTRUCTIONS and text not in not_compared)
    asked, rest = others[first:last], (*others[:first], *others[last:])
    return _Parts(*(fold(ends_of("\n".join(texts))) for texts in (_texts(asked), system, _texts(rest))))


def _user_part_of(question: Question, user_part: str, not_compared: Container[str]) -> str:
    asked = _texts(message for message in question if message[0] not in INSTRUCTIONS)
    whole = (text for role, text in question if role not in INSTRUCTIONS or text not in not_compared)
    text = asked_or_documents("\n".join(asked), "\n".join(whole))
    found = re.finditer(user_part, text)
    return ends_of("\n".join(match.group(1 if match.re.groups else 0) or "" for match in found) or text)


def _texts(messages: Iterable[tuple[str, str]]) -> list[str]:
    return [text for _, text in messages]


def _sketch_one(parts: _Parts, templates: Sequence[Templates]) -> Sketch:
    (sketches,) = _sketch_together([parts.asked], [parts.document], [parts.rest], templates)
    (sketch,) = sketches
    return sketch


def _sketch_together(
    asked: Sequence[str], documents: Sequence[str], rest: Sequence[str], templates: Sequence[Templates]
) -> Iterator[Sketches]:
    """Yield the sketches of questions, in portions. `templates`: of each of the three parts."""
    of_documents, of_rest = (
        (sketch for sketches in sketch_folded([t for t in texts if t], found) for sketch in sketches)
        for texts, found in ((documents, templates[1]), (rest, templates[2]))
    )
    start = 0
    for sketches in sketch_folded(asked, templates[0]):
        numbers = range(start, start + len(sketches))
        start = numbers.stop
        if not any(documents[number] or rest[number] for number in numbers):
            yield sketches
            continue
        together = []
        for number, sketch in zip(numbers, sketches, strict=True):
            context: list[Hashes] = []
            if documents[number]:
                document = next(of_documents).shingles
                longer = len(documents[number]) > len(asked[number])
                context += [document] if _is_document(document, sketch, longer=longer) else []
            if rest[number]:
                context.append(next(of_rest).shingles)
            together.append(_with_context(sketch, np.unique(np.concatenate(context))) if context else sketch)
        yield Sketches.of(together)


def _is_document(system: Hashes, asked: Sketch, *, longer: bool) -> bool:
    """Return True if a system message has more of its own than what was asked: else it only instructs.

    `longer`: it is the longer text, which two samples do not show.
    """
    own, count = len(system), len(asked.shingles)
    return own > _LEAST_DOCUMENT and (own > count or (longer and own == MAX_SHINGLES))


def _with_context(asked: Sketch, context: Hashes) -> Sketch:
    """Return the sketch of what was asked and what it was asked about, as many shingles of each where it has them."""
    sample = context[: min(max(len(asked.shingles), _LEAST_SAMPLE), _MOST_SAMPLE)] * _CONTEXT
    shingles = np.unique(np.concatenate((asked.shingles[:_MOST_SAMPLE], sample)))
    # One typo in a short question makes no other one about the same.
    return Sketch(shingles, np.sort(mixed(asked.typos ^ np.bitwise_xor.reduce(mixed(sample)))))


def _shared_system_texts(questions: Iterable[Question]) -> frozenset[str]:
    """Return what applications tell the model before many different questions: their instructions."""
    before: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        for role, text in question:
            if role in INSTRUCTIONS:
                asked = _texts(message for message in question if message[0] not in INSTRUCTIONS)
                before[text].add(text_hash("\n".join(asked)))
    return frozenset(text for text, asked in before.items() if len(asked) >= MIN_TEXTS)
