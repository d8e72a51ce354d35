"""The life of a task by chance: what people say, ask, correct and take back, cycle after cycle, and what is decided."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from schemas.conversation import Message, Role
from schemas.labels import CorrectionSubmitted
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.carry_over import Revision
from services.dataset_builder.building.places import Place
from services.dataset_builder.building.votes import UserCorrection, votes_of
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from services.dataset_builder.storage.places import without_erased
from shared.privacy.erasure import ErasedSubjects
from tests.unit.dataset_builder.histories import LABELS, NOON, correction, sentence, task, user_word

WORDS = ("parcel", "refund", "please", "where", "order", "late", "cancel", "now", "card", "twice", "abroad", "fee")
SIMILARITIES = (0.6, 0.8, 0.8, 0.95)
USERS = [f"u{number}" for number in range(7)]
TEMPLATE = "A customer of a shop that sells bicycles writes to its desk.\nCustomer: {}\nAnswer in one word."
USER_PART = r"(?s:.*)Customer: (.*)\nAnswer"

Messages = tuple[Message, ...]
Word = CorrectionSubmitted | UserCorrection


def said(message: Message) -> str:
    """Return what the user wrote into the template, or all of the message."""
    _, mark, text = message.text.partition("Customer: ")
    return text.removesuffix("\nAnswer in one word.") if mark else message.text


@dataclass
class RandomHistory:
    """`words`: all that people said, by correction. `conversations`: of each prediction, by session or first turn.

    `leaving`: who is forgotten while the next build runs. `templated`: all texts are in the template.
    """

    rng: random.Random
    spec: TaskSpec
    templated: bool
    words: dict[str, Word] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    revisions: dict[str, Revision] = field(default_factory=dict)
    frozen: list[Messages] = field(default_factory=list)
    sessions: dict[str, str | None] = field(default_factory=dict)
    conversations: dict[str, str] = field(default_factory=dict)
    leaving: str | None = None
    minute: int = 0

    @classmethod
    def begin(cls, rng: random.Random) -> RandomHistory:
        kind = TaskKind.GENERATION if rng.random() < 0.3 else TaskKind.CLASSIFICATION
        templated = rng.random() < 0.3
        spec = task(
            kind, max_voter_shift=rng.choice((0.3, 1.0)), user_part=USER_PART if templated else None,
            balance={"max_copies": rng.choice((2, 10))},
        )  # fmt: skip
        return cls(rng, spec, templated)

    def step(self) -> None:
        """One cycle of random events."""
        for _ in range(self.rng.randint(3, 12)):
            self.ask((), self.new_text())
        for _ in range(self.rng.randint(0, 6)):
            before, text = self.any_word().call.messages, ""
            for _ in range(self.rng.randint(1, 4)):  # A chain of near-copies.
                text = self.near_copy(text or said(before[-1]))
                self.ask((), text)
        for _ in range(self.rng.randint(0, 5)):
            self.continue_conversation(self.any_word())
        for _ in range(4):
            self.correct_again(self.any_word())
        events = (self.forget, self.expire, self.set, self.revise, self.rename, self.freeze, lambda: None)
        self.rng.choice(events)()

    def any_word(self) -> Word:
        return self.rng.choice(list(self.words.values()))

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

    def ask(self, before: Messages, text: str, turn_of: Word | None = None) -> None:
        """A prediction, and what a reviewer or a user said of it."""
        name = f"p{len(self.sessions)}"
        if turn_of is None:
            session = self.rng.choice((None, None, f"s{self.rng.randrange(40)}"))
            self.conversations[name] = session or name
            user = self.rng.choice((None, *USERS))
            if self.rng.random() < 0.5:
                before = (Message(role=Role.SYSTEM, content=self.spec.system_prompt),)
        else:
            session, user = self.sessions[turn_of.prediction_id], turn_of.user_hash
            self.conversations[name] = self.conversations[turn_of.prediction_id]
        self.sessions[name] = session
        content = TEMPLATE.format(text) if self.templated else text
        messages = (*before, Message(role=Role.USER, content=content))
        self.say(name, messages, user, by_user=self.rng.random() < 0.2)

    def continue_conversation(self, word: Word) -> None:
        """A later turn, whose input repeats the earlier ones, of a session or of a conversation without one."""
        answer = Message(role=Role.ASSISTANT, content=word.answers[0].text)
        self.ask((*word.call.messages, answer), self.new_text(), turn_of=word)

    def correct_again(self, word: Word) -> None:
        """Another word on a prediction: of its reviewer, of another one, of its user, of another user, of nobody."""
        self.say(word.prediction_id, word.call.messages, word.user_hash, by_user=self.rng.random() < 0.4)

    def say(self, name: str, messages: Messages, user: str | None, *, by_user: bool) -> None:
        self.minute += self.rng.randint(1, 9)
        label = self.rng.choice(self.spec.labels or LABELS)
        given = correction(name, "", label, reviewer=self.rng.choice("abcde"), minute=self.minute, user=user)
        more: dict[str, object] = {"drawn_probability": self.rng.choice((None, 0.1, 0.5))}
        if by_user:
            more = {"author_hash": self.rng.choice((user, user, None, *USERS)), "user_hash": user, "app": "shop"}
        word: Word = user_word(given) if by_user else given
        call = word.call.model_copy(update={"messages": messages})
        more |= {"task_revision": self.spec.revision, "session_hash": self.sessions[name], "call": call}
        self.words[word.correction_id] = word.model_copy(update=more)

    def forget(self) -> None:
        """A user is erased before the build, or while it runs."""
        self.leaving = self.rng.choice(USERS)
        if self.rng.random() < 0.5:
            self.erase()

    def erase(self) -> set[str]:
        """Delete what is of the leaving user, as the store does. Returns the predictions that are gone."""
        user, self.leaving = self.leaving, None
        before = {word.prediction_id for word in self.words.values()}
        theirs = {word.prediction_id for word in self.words.values() if word.user_hash == user}
        self.words = {
            name: word
            for name, word in self.words.items()
            if word.prediction_id not in theirs and not (isinstance(word, UserCorrection) and word.author_hash == user)
        }
        gone = before - {word.prediction_id for word in self.words.values()}
        gone |= {name for name, place in self.places.items() if place.user_hash == user}
        self.places = {name: place for name, place in self.places.items() if name not in gone}
        return gone

    def expire(self) -> None:
        """The oldest predictions are past the retention. Their places stay."""
        oldest = list(self.words.values())[: self.rng.randint(1, len(self.words) // 2)]
        gone = {word.prediction_id for word in oldest}
        self.words = {name: word for name, word in self.words.items() if word.prediction_id not in gone}

    def set(self) -> None:
        change: dict[str, object] = {
            "eval_share": self.rng.choice((0.05, 0.2, 0.5, 0.8)),
            "seed": self.rng.randrange(5),
            "near_copy_similarity": self.rng.choice(SIMILARITIES),
            "min_examples_per_label": self.rng.randint(1, 4),
        }
        if self.templated:
            change["user_part"] = self.rng.choice((None, USER_PART, USER_PART))
        self.spec = self.spec.model_copy(update={"dataset": self.spec.dataset.model_copy(update=change)})

    def revise(self, **change: object) -> None:
        """Another prompt, and another label."""
        self.revisions[self.spec.revision] = Revision(self.spec.kind, self.spec.system_prompt)
        change.setdefault("system_prompt", f"{self.spec.system_prompt} Answer with nothing else.")
        if self.spec.labels:
            change.setdefault("labels", (*self.spec.labels, f"label{len(self.spec.labels)}"))
        self.spec = self.spec.model_copy(update=change)

    def rename(self) -> None:
        if not self.spec.labels:
            return self.revise()
        old = self.rng.choice(self.spec.labels)
        new = f"{old}-{len(self.revisions)}"
        renamed = {name: new if label == old else label for name, label in self.spec.renamed_labels.items()}
        labels = tuple(new if label == old else label for label in self.spec.labels)
        return self.revise(labels=labels, renamed_labels={**renamed, old: new})

    def freeze(self) -> None:
        self.frozen = [self.any_word().call.messages for _ in range(2)]

    def build(self) -> Build:
        words = self.rng.sample(list(self.words.values()), len(self.words))
        votes = votes_of(
            [word for word in words if isinstance(word, CorrectionSubmitted)],
            [word for word in words if isinstance(word, UserCorrection)],
        )
        return build_dataset(Inputs(votes, self.spec, self.places, golden=self.frozen, revisions=self.revisions))

    def store(self, decided: Mapping[str, Place]) -> None:
        """Store the places that a build decided, and finish an erasure that was asked for meanwhile."""
        assert not decided.keys() & self.places.keys(), "a place was decided twice"
        until = NOON + timedelta(minutes=self.minute)
        erased = ErasedSubjects({("desk", self.leaving): until} if self.leaving else {})
        kept = {name: decided[name] for name in without_erased("desk", decided, erased)}
        gone = self.erase() if self.leaving else set[str]()
        assert not gone & kept.keys(), "who was erased during the build keeps a place"
        self.places = dict(sorted({**self.places, **kept}.items()))
