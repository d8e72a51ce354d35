"""Sketches of questions, which are conversations: what was asked, and a document that it was asked about.

Applications put documents into system messages, and instructions. Two questions about one document differ, and so do
the summaries of two documents; a date or a customer's name in an instruction makes no other question. So what was asked
and the document count as much as each other, however long they are: questions are near where both are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from schemas.conversation import Message, Role, input_text
from shared.conversation import comparable_text
from shared.model.sketches import MAX_SHINGLES, Sketch, Sketches, mixed, sketch_folded
from shared.model.templates import MIN_TEXTS, Templates, find_templates
from shared.model.texts import fold, text_hash

_LEAST_DOCUMENT = 48
"""Shingles of its own that a document has: a date and a name have fewer."""
_LEAST_SAMPLE = 32
"""Of a document, beside a shorter question: of fewer shingles most might have a typo."""
_MOST_SAMPLE = MAX_SHINGLES // 2 - 1
"""Of either part. Both together are no sample of one text."""
_DOCUMENT = np.uint32(0x9E3779B1)
"""Odd: keeps shingles of a document apart from those of questions."""

Question = Sequence[Message]
Parts = tuple[str, str]
"""What was asked, and the document or "", folded."""


class QuestionSketcher:
    """Sketches questions by what all of a task's questions have in common, which is not compared."""

    def __init__(self, user_part: str | None, prompts: frozenset[str], questions: Iterable[Question]) -> None:
        """`user_part`: see `comparable_text`. `prompts`: the task's own system prompts. `questions`: all of them."""
        self._user_part, self._prompts = user_part, prompts
        self._not_compared = prompts | _shared_system_texts(questions, prompts)
        self._templates = self._document_templates = Templates()

    def sketch_all(self, questions: Sequence[Question]) -> Iterator[Sketches]:
        """Find the templates of all the questions, and yield their sketches, in order and in portions."""
        parts = [self._parts(messages) for messages in questions]
        asked, documents = [asked for asked, _ in parts], [document for _, document in parts]
        del parts
        self._templates, self._document_templates = find_templates(asked), find_templates(documents)
        return _together(asked, documents, self._templates, self._document_templates)

    def sketch(self, messages: Question) -> Sketch:
        """Return the sketch of what is compared of one of the questions."""
        return self._sketch_one(self._parts(messages), self._templates, self._document_templates)

    def sketch_whole(self, messages: Question) -> Sketch:
        """Return the sketch of all of a question: for when a template that it is behind, or `user_part`, is gone."""
        parts = fold(comparable_text(messages)), fold(_document(messages, self._prompts))
        return self._sketch_one(parts, Templates(), Templates())

    def _parts(self, messages: Question) -> Parts:
        if self._user_part is not None:
            return fold(comparable_text(messages, self._user_part, self._not_compared)), ""
        return fold(comparable_text(messages)), fold(_document(messages, self._not_compared))

    @staticmethod
    def _sketch_one(parts: Parts, templates: Templates, document_templates: Templates) -> Sketch:
        (sketches,) = _together([parts[0]], [parts[1]], templates, document_templates)
        (sketch,) = sketches
        return sketch


def _together(
    asked: Sequence[str], documents: Sequence[str], templates: Templates, document_templates: Templates
) -> Iterator[Sketches]:
    """Yield the sketches of questions, both parts together where there is a document. All are folded."""
    given = sketch_folded([document for document in documents if document], document_templates)
    of_documents = (sketch for sketches in given for sketch in sketches)
    start = 0
    for sketches in sketch_folded(asked, templates):
        part = range(start, start + len(sketches))
        start = part.stop
        if not any(documents[number] for number in part):
            yield sketches
            continue
        yield Sketches.of(
            [
                _with_document(sketch, next(of_documents), longer=len(documents[number]) > len(asked[number]))
                if documents[number]
                else sketch
                for number, sketch in zip(part, sketches, strict=True)
            ]
        )


def _with_document(asked: Sketch, document: Sketch, *, longer: bool) -> Sketch:
    """Return the sketch of both, or of what was asked alone where the rest is too short to be a document."""
    count, own = len(asked.shingles), len(document.shingles)
    if own <= _LEAST_DOCUMENT or not (own > count or (longer and own == MAX_SHINGLES)):
        return asked
    sample = document.shingles[: max(min(count, _MOST_SAMPLE), _LEAST_SAMPLE)] * _DOCUMENT
    shingles = np.unique(np.concatenate((asked.shingles[:_MOST_SAMPLE], sample)))
    # One typo in a short question makes no other one about the same document.
    return Sketch(shingles, np.sort(mixed(asked.typos ^ np.bitwise_xor.reduce(mixed(sample)))))


def _document(messages: Question, not_compared: frozenset[str]) -> str:
    """Return what system messages say beside what is not compared."""
    system = tuple(message for message in messages if message.role == Role.SYSTEM)
    return input_text(system, not_compared)


def _shared_system_texts(questions: Iterable[Question], prompts: frozenset[str]) -> frozenset[str]:
    """Return what applications tell the model before many different questions: their instructions."""
    before: dict[str, set[str]] = defaultdict(set)
    for messages in questions:
        for message in messages:
            if message.role == Role.SYSTEM and message.text not in prompts:
                before[message.text].add(text_hash(input_text(tuple(messages))))
    return frozenset(text for text, asked in before.items() if len(asked) >= MIN_TEXTS)
