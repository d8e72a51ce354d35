"""Corrections for tests of places: texts that share nothing, near-copies of them, and builds one after the other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Fate
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.task_settings import DatasetSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.places import Place
from services.dataset_builder.building.votes import UserCorrection, votes_of
from services.dataset_builder.pipeline import Build, Inputs, build_dataset

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
LABELS = ("refund", "delivery", "cancel")


def task(kind: TaskKind = TaskKind.CLASSIFICATION, **dataset: object) -> TaskSpec:
    labels = LABELS if kind is TaskKind.CLASSIFICATION else ()
    rules = DatasetSettings.model_validate({"min_answer_chars": 1, **dataset})
    return TaskSpec(name="desk", kind=kind, system_prompt="Intent?", labels=labels, dataset=rules)


def sentence(number: int, words: int = 9) -> str:
    """Return a text that shares hardly anything with that of another number."""
    rng = random.Random(number)
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(words))


def correction(
    name: str, text: str, label: str, *, reviewer: str = "ana", minute: int = 0, user: str | None = None
) -> CorrectionSubmitted:
    return CorrectionSubmitted(
        occurred_at=NOON + timedelta(minutes=minute),
        task="desk",
        task_revision=task().revision,
        correction_id=f"c-{name}-{reviewer}-{minute}",
        request_id=f"r-{name}",
        prediction_id=name,
        purpose=Purpose.LOW_CONFIDENCE,
        reviewer=reviewer,
        call=Call(messages=(Message(role=Role.USER, content=text),)),
        answers=(Answer(text="other"),),
        label=label,
        user_hash=user,
        predicted_at=NOON,
    )


def user_word(given: CorrectionSubmitted, user: str = "u") -> UserCorrection:
    """Return the same word about the same prediction as its user's."""
    shared = ("correction_id", "task", "task_revision", "prediction_id", "occurred_at", "call", "answers", "label")
    fields = {name: getattr(given, name) for name in shared}
    return UserCorrection(**fields, author_hash=user, user_hash=user, predicted_at=NOON)


def corrections(count: int, first: int = 0) -> list[CorrectionSubmitted]:
    return [correction(f"p{n}", sentence(n), LABELS[n % 3], minute=n) for n in range(first, first + count)]


class Builds:
    """Builds one after the other, each with the places of those before it."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}

    def build(
        self, rows: Sequence[CorrectionSubmitted], spec: TaskSpec | None = None, frozen: Sequence[str] = ()
    ) -> Build:
        questions = tuple((Message(role=Role.USER, content=text),) for text in frozen)
        inputs = Inputs(votes_of(rows), spec or task(), self.places, golden=questions)
        build = build_dataset(inputs)
        assert not build.places.keys() & self.places.keys()
        self.places = {**self.places, **build.places}
        return build

    def forget(self, names: Sequence[str]) -> None:
        self.places = {name: place for name, place in self.places.items() if name not in names}


def fates(build: Build) -> dict[str, Fate]:
    """Return the fate of each prediction; of one whose votes were left out apart from it, that of its row."""
    left_out = {name: row.fate for row in build.dataset.left_out for name in row.prediction_ids}
    return left_out | dict.fromkeys(trained(build), Fate.TRAIN) | dict.fromkeys(held_out(build), Fate.EVAL)


def trained(build: Build) -> set[str]:
    return {name for example in build.dataset.train for name in example.prediction_ids}


def held_out(build: Build) -> set[str]:
    return {name for example in build.dataset.eval for name in example.prediction_ids}


def with_similarity(spec: TaskSpec, similarity: float) -> TaskSpec:
    return spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"near_copy_similarity": similarity})})
