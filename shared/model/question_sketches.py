"""Sketches of questions, which are conversations: what the user asked last, and what it was asked about.

Applications put documents into system messages, and instructions; conversations have a beginning, calls and results.
Two questions about one document differ, and so do the summaries of two documents, and the same "yes" after two
beginnings; a date or a customer's name in an instruction makes no other question. So what was asked and what it was
asked about count as much as each other, however long they are: questions are near where both are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from schemas.conversation import INSTRUCTIONS, Message, Role, input_text
from shared.conversation import comparable_text, ends_of
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

Question = Sequence[Message]


class _Parts(NamedTuple):
    """What was asked, a system message that may be a document, and the other messages: folded, "" for none."""

    asked: str
    document: str = ""
    rest: str = ""


class QuestionSketcher:
    """Sketches questions by what all of a task's questions have in common, which is not compared."""

    def __init__(self, user_part: str | None, prompts: frozenset[str], questions: Iterable[Question]) -> None:
        """`user_part`: see `comparable_text`. `prompts`: the task's own system prompts. `questions`: all of them."""
        self._user_part, self._prompts = user_part, prompts
        self._not_compared = prompts | _shared_system_texts(questions, prompts)
        self._templates = [Templates()] * 3

    def sketch_all(self, questions: Iterable[Question]) -> Iterator[Sketches]:
        """Find the templates of all the questions, and yield their sketches, in order and in portions."""
        parts = [self._parts(messages) for messages in questions]
        columns = [part.asked for part in parts], [part.document for part in parts], [part.rest for part in parts]
        del parts
        self._templates = [find_templates(texts) for texts in columns]
        return _sketch_together(*columns, self._templates)

    def sketch(self, messages: Question) -> Sketch:
        """Return the sketch of what is compared of one of the questions."""
        return _sketch_one(self._parts(messages), self._templates)

    def sketch_whole(self, messages: Question) -> Sketch:
        """Return the sketch of all of a question: for when a template that it is behind, or `user_part`, is gone."""
        return _sketch_one(_parts_of(messages, self._prompts), [Templates()] * 3)

    def _parts(self, messages: Question) -> _Parts:
        if self._user_part is not None:
            return _Parts(fold(comparable_text(messages, self._user_part, self._not_compared)))
        return _parts_of(messages, self._not_compared)


def _parts_of(messages: Question, not_compared: frozenset[str]) -> _Parts:
    """The last messages of the user in a row are what was asked. What is about a question follows from all the rest."""
    system = tuple([message for message in messages if message.role in INSTRUCTIONS])
    others = [message for message in messages if message.role not in INSTRUCTIONS] if system else messages
    last = len(others)
    while last and others[last - 1].role != Role.USER:
        last -= 1
    first = last
    while first and others[first - 1].role == Role.USER:
        first -= 1
    rest = (*others[:first], *others[last:])
    return _Parts(
        fold(comparable_text(others[first:last])),
        fold(ends_of(input_text(system, not_compared))) if system else "",
        fold(comparable_text(rest)) if rest else "",
    )


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


def _shared_system_texts(questions: Iterable[Question], prompts: frozenset[str]) -> frozenset[str]:
    """Return what applications tell the model before many different questions: their instructions."""
    before: dict[str, set[str]] = defaultdict(set)
    for messages in questions:
        for message in messages:
            if message.role in INSTRUCTIONS and message.text not in prompts:
                before[message.text].add(text_hash(input_text(tuple(messages))))
    return frozenset(text for text, asked in before.items() if len(asked) >= MIN_TEXTS)
