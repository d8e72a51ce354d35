"""Random histories: nothing like an unseen row is ever trained on, and every row is in exactly one place."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from schemas.labels import CorrectionSubmitted
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.carry_over import Revision
from services.dataset_builder.building.places import Place
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Build, Decisions, Inputs, build_dataset
from shared.model.texts import fold
from tests.unit.dataset_builder.histories import LABELS, correction, held_out, sentence, task, trained

HISTORIES, PARTS, CYCLES = 60, 6, 5
WORDS = ("parcel", "refund", "please", "where", "order", "late", "cancel", "now", "card", "twice", "abroad", "fee")
SIMILARITIES = (0.6, 0.8, 0.8, 0.95)


def runs(text: str) -> frozenset[str]:
    padded = fold(text).ljust(4, "\0")
    return frozenset(padded[start : start + 4] for start in range(len(padded) - 3))


def are_near(left: frozenset[str], right: frozenset[str], similarity: float) -> bool:
    return len(left & right) / len(left | right) >= similarity


@dataclass
class History:
    """A task's life: what people said, what is set, what was decided, and what was held out in any version."""

    rng: random.Random
    spec: TaskSpec
    rows: dict[str, CorrectionSubmitted] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    revisions: dict[str, Revision] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    unseen: dict[str, frozenset[str]] = field(default_factory=dict)
    session_of: dict[str, str | None] = field(default_factory=dict)
    ever_trained: set[str] = field(default_factory=set)
    ever_held_out: set[str] = field(default_factory=set)
    minute: int = 0

    def text(self, row: CorrectionSubmitted) -> str:
        return row.call.messages[0].text

    def add(self, name: str, text: str, label: str | None = None, reviewer: str | None = None) -> None:
        self.minute += self.rng.randint(1, 9)
        label = label or self.rng.choice(self.spec.labels or LABELS)
        reviewer = reviewer or self.rng.choice("abc")
        row = correction(name, text, label, reviewer=reviewer, minute=self.minute, user=f"u{len(self.rows) % 7}")
        drawn = self.rng.choice((None, 0.1, 0.5))
        session = self.session_of.setdefault(name, self.rng.choice((None, f"s{self.rng.randrange(40)}")))
        more = {"task_revision": self.spec.revision, "drawn_probability": drawn, "session_hash": session}
        self.rows[row.correction_id] = row.model_copy(update=more)

    def new_text(self) -> str:
        if self.rng.random() < 0.5:
            return sentence(self.rng.randrange(10**9), self.rng.randint(2, 9))
        return " ".join(self.rng.choices(WORDS, k=self.rng.randint(1, 8)))

    def near_copy(self, text: str) -> str:
        words = text.split()
        choice = self.rng.randrange(5)
        if choice == 0 and len(text) > 2:
            place = self.rng.randrange(len(text) - 1)
            return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        if choice == 1:
            return f"{text} {self.rng.choice(WORDS)}"
        if choice == 2 and len(words) > 2:
            return " ".join(words[1:])
        if choice == 3:
            return text.upper() + "!"
        return text

    def step(self) -> None:
        """One cycle of random events."""
        for number in range(self.rng.randint(3, 14)):
            self.add(f"p{self.minute}-{number}", self.new_text())
        for number in range(self.rng.randint(0, 8)):
            text = self.text(self.rng.choice(list(self.rows.values())))
            for link in range(self.rng.randint(1, 4)):  # A chain of near-copies.
                text = self.near_copy(text)
                self.add(f"n{self.minute}-{number}-{link}", text)
        for row in self.rng.sample(list(self.rows.values()), k=min(4, len(self.rows))):  # Edits and further votes.
            self.add(row.prediction_id, self.text(row), reviewer=self.rng.choice((row.reviewer, "d", "e")))
        self.rng.choice((self.forget, self.expire, self.set, self.revise, self.freeze, lambda: None))()

    def forget(self) -> None:
        user = f"u{self.rng.randrange(7)}"
        self.places = {name: place for name, place in self.places.items() if place.user_hash != user}
        gone = {row.prediction_id for row in self.rows.values() if row.user_hash == user}
        self.rows = {name: row for name, row in self.rows.items() if row.prediction_id not in gone}
        kept = self.places.keys() | {row.prediction_id for row in self.rows.values()}
        self.unseen = {name: text for name, text in self.unseen.items() if name in kept}

    def expire(self) -> None:
        oldest = list(self.rows.values())[: self.rng.randint(1, len(self.rows) // 2)]
        gone = {row.prediction_id for row in oldest}
        self.rows = {name: row for name, row in self.rows.items() if row.prediction_id not in gone}

    def set(self) -> None:
        change = {
            "eval_share": self.rng.choice((0.05, 0.2, 0.5, 0.8)),
            "seed": self.rng.randrange(5),
            "near_copy_similarity": self.rng.choice(SIMILARITIES),
            "min_examples_per_label": self.rng.randint(1, 4),
        }
        self.spec = self.spec.model_copy(update={"dataset": self.spec.dataset.model_copy(update=change)})

    def revise(self) -> None:
        self.revisions[self.spec.revision] = Revision(self.spec.kind, self.spec.system_prompt)
        change: dict[str, object] = {"system_prompt": f"{self.spec.system_prompt}!"}
        if self.spec.labels:
            change["labels"] = (*self.spec.labels, f"label{len(self.spec.labels)}")
        self.spec = self.spec.model_copy(update=change)

    def freeze(self) -> None:
        self.frozen = [self.text(row) for row in self.rng.sample(list(self.rows.values()), k=min(2, len(self.rows)))]

    def build(self) -> Build:
        shuffled = self.rng.sample(list(self.rows.values()), len(self.rows))
        messages = [correction("f", text, "refund").call.messages for text in self.frozen]
        inputs = Inputs(
            votes_of(shuffled), self.spec, Decisions(places=self.places), frozen=messages, revisions=self.revisions
        )
        build = build_dataset(inputs)
        assert not build.decisions.places.keys() & self.places.keys(), "a place was decided twice"
        self.places = dict(sorted({**self.places, **build.decisions.places}.items()))
        return build

    def check(self, build: Build) -> None:
        dataset = build.dataset
        found = Counter(
            c for part in (dataset.train, dataset.eval, dataset.left_out) for row in part for c in row.correction_ids
        )
        assert found == Counter(list(self.rows)), "every word of a person is in exactly one place"
        assert not trained(build) & held_out(build)
        similarity = self.spec.dataset.near_copy_similarity
        self.ever_trained |= trained(build)
        self.ever_held_out |= held_out(build)
        assert not self.ever_held_out & self.ever_trained, "what was trained on became evaluation, or the other way"
        texts = {
            example.prediction_ids[0]: runs(example.prompt[-1].text) for example in (*dataset.train, *dataset.eval)
        }
        unseen = {example.prediction_ids[0] for example in dataset.eval if not example.seen}
        self.unseen |= {name: texts[name] for name in unseen & build.decisions.places.keys()}
        never = [*self.unseen.values(), *(texts[name] for name in unseen), *map(runs, self.frozen)]
        for example in dataset.train:
            mine = texts[example.prediction_ids[0]]
            assert not any(are_near(mine, theirs, similarity) for theirs in never), example.prediction_ids
        assert all(example.drawn_probability is not None or not example.seen for example in dataset.eval)
        sessions = [{self.session_of[name] for name in part(build)} - {None} for part in (trained, held_out)]
        assert not sessions[0] & sessions[1], "turns of one session on both sides"


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_like_an_unseen_row_is_ever_trained_on(part: int) -> None:
    for number in range(HISTORIES // PARTS):
        rng = random.Random(part * 1_000 + number)
        kind = TaskKind.GENERATION if rng.random() < 0.3 else TaskKind.CLASSIFICATION
        history = History(rng, task(kind, max_voter_shift=rng.choice((0.3, 1.0)), min_answer_chars=1))
        for _ in range(CYCLES):
            history.step()
            history.check(history.build())
