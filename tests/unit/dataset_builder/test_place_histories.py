"""Random histories: nothing like an unseen row is ever trained on, and every row is in exactly one place."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from schemas.conversation import Message, Role
from schemas.datasets import Example, Fate
from schemas.labels import CorrectionSubmitted
from schemas.tasks import TaskSpec
from services.dataset_builder.pipeline import Build
from shared.model.texts import fold
from tests.unit.dataset_builder.histories import held_out, trained
from tests.unit.dataset_builder.random_history import RandomHistory, said

HISTORIES, PARTS, CYCLES = 200, 10, 8


class Asked(NamedTuple):
    """The runs of four characters of a user's own words, and of what came before them."""

    own: frozenset[str]
    before: frozenset[str]

    def is_near(self, other: Asked, similarity: float) -> bool:
        pairs = zip(self, other, strict=True)
        return all(len(left & right) >= similarity * len(left | right) for left, right in pairs)


def asked(messages: Sequence[Message], spec: TaskSpec) -> Asked:
    """What a prompt is compared by: within a template, once the task says so, what the user wrote last alone."""
    *turns, last = [message for message in messages if message.role != Role.SYSTEM]
    if spec.dataset.user_part:
        return Asked(runs(said(last)), runs(""))
    before = "\n".join(turn.text for turn in turns)
    return Asked(runs(last.text), runs(before if len(before) > len(last.text) else ""))


def runs(text: str) -> frozenset[str]:
    padded = fold(text).ljust(4, "\0")
    return frozenset(padded[start : start + 4] for start in range(len(padded) - 3))


@dataclass
class Versions:
    """What the versions of a history had on which side, and how each unseen row was asked when it was held out."""

    history: RandomHistory
    trained: set[str] = field(default_factory=set)
    held_out: set[str] = field(default_factory=set)
    unseen: dict[str, Asked] = field(default_factory=dict)

    def check(self, build: Build) -> None:
        self.check_words(build)
        self.check_sides(build)
        self.check_copies(build)

    def check_words(self, build: Build) -> None:
        dataset, words = build.dataset, self.history.words
        parts = (dataset.train, dataset.eval, dataset.left_out)
        found = Counter(name for part in parts for row in part for name in row.correction_ids)
        assert found == Counter(words.keys()), "every word of a person is in exactly one place"
        assert not {"label_removed", "other_kind"} & dataset.left_out_by_reason().keys(), "lost by a rename"
        reviewed = {word.prediction_id for word in words.values() if isinstance(word, CorrectionSubmitted)}
        to_eval = {name for name, place in build.places.items() if place.fate is Fate.EVAL}
        assert held_out(build) | to_eval <= reviewed, "a user's word alone measures nothing"

    def check_sides(self, build: Build) -> None:
        history = self.history
        places = {**history.places, **build.places}
        for names, fate in ((trained(build), Fate.TRAIN), (held_out(build), Fate.EVAL)):
            assert {places[name].fate for name in names} <= {fate}, "not where its place says"
        self.trained |= trained(build)
        self.held_out |= held_out(build)
        assert not self.trained & self.held_out, "what was trained on became evaluation, or the other way"
        of = history.conversations
        both = {of[name] for name in trained(build)} & {of[name] for name in held_out(build)}
        assert not both, "turns of one conversation on both sides"

    def check_copies(self, build: Build) -> None:
        """No training row is like an unseen one of any version, whose text may be gone, or like a golden question."""
        spec, evaluation = self.history.spec, build.dataset.eval
        self.unseen = {name: known for name, known in self.unseen.items() if name in self.history.places}
        now = {row.prediction_ids[0]: asked(row.prompt, spec) for row in evaluation if not row.seen}
        self.unseen |= {name: known for name, known in now.items() if name in build.places}
        never = {*self.unseen.values(), *now.values(), *(asked(messages, spec) for messages in self.history.frozen)}
        assert not near_ones(build.dataset.train, never, spec)
        no_sample = [row for row in evaluation if row.drawn_probability is None]
        assert not any(row.seen for row in no_sample), "held out, and trained on, nearly"


def near_ones(rows: Collection[Example], others: Collection[Asked], spec: TaskSpec) -> list[str]:
    """The predictions of rows that ask nearly what one of the others does."""
    similarity = spec.dataset.near_copy_similarity
    mine = {row.prediction_ids[0]: asked(row.prompt, spec) for row in rows}
    return [name for name, known in mine.items() if any(known.is_near(other, similarity) for other in others)]


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_like_an_unseen_row_is_ever_trained_on(part: int) -> None:
    for number in range(HISTORIES // PARTS):
        history = RandomHistory.begin(random.Random(part * 1_000 + number))
        versions = Versions(history)
        for _ in range(CYCLES):
            history.step()
            build = history.build()
            versions.check(build)
            history.store(build.places)
