"""Places of rows on the real database: decided once, kept past expiry, and gone with whoever asks to be forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from schemas.conversation import Answer, Call, Message, Role
from schemas.cycles import PartitionFence, StepFailed
from schemas.datasets import DatasetBuilt, Fate
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import SubjectForgotten
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.votes import Vote, votes_of
from services.dataset_builder.job import NAME
from services.dataset_builder.main import MIGRATIONS
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from services.dataset_builder.storage.corrections import PostgresCorrectionStore
from shared.kafka.delivery import Delivery
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from tests.integration.outcomes import save_outcome

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
TOPIC = "corrections.submitted.v1"
FENCE = (PartitionFence(topic=TOPIC, partition=991, offset=10**9),)


@pytest.fixture
async def store(stack_settings: Settings) -> AsyncIterator[PostgresCorrectionStore]:
    await migrate(stack_settings, NAME, MIGRATIONS)
    engine = build_engine(stack_settings, NAME)
    yield PostgresCorrectionStore(engine)
    await engine.dispose()


@pytest.fixture
def spec() -> TaskSpec:
    """A task of its own for each test: they share the stack's database."""
    labels = ("refund", "delivery")
    return TaskSpec(
        name=f"places-{uuid4().hex[:8]}", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=labels
    )


def delivered(spec: TaskSpec, number: int, name: str = "p", typo: bool = False) -> Delivery[CorrectionSubmitted]:
    """A correction of a question that is like no other, of user u<number>, made a day later for each number."""
    text = f"{chr(97 + number) * 9} {number * 7919} {chr(110 - number) * 9} went wrong again with my order"
    event = CorrectionSubmitted(
        task=spec.name, task_revision=spec.revision, correction_id=f"{spec.name}-{name}{number}", request_id="r",
        prediction_id=f"{spec.name}-{name}{number}", purpose=Purpose.LOW_CONFIDENCE, reviewer="ana",
        call=Call(messages=(Message(role=Role.USER, content=text.replace("order", "orders") if typo else text),)),
        answers=(Answer(text="x"),), label=spec.labels[number % 2], user_hash=f"u{number}",
        predicted_at=NOON + timedelta(days=number),
    )  # fmt: skip
    return Delivery(event, TOPIC, 991, number + (100 if typo else 0), {})


async def votes(store: PostgresCorrectionStore, spec: TaskSpec) -> list[Vote]:
    parts = store.corrections_below(spec.name, FENCE, "rules")
    return [vote async for part in parts for vote in votes_of(part.others.reviewers)]


async def build(store: PostgresCorrectionStore, spec: TaskSpec, cycle: str, fails: bool = False) -> Build:
    built = build_dataset(Inputs(await votes(store, spec), spec, await store.places(spec.name)))
    base = {"task": spec.name, "task_revision": spec.revision, "cycle_id": f"{spec.name}-{cycle}"}
    outcome: DatasetBuilt | StepFailed
    if fails:
        outcome = StepFailed.model_validate(
            {**base, "service": NAME, "step": "dataset", "reason": "a gate", "way_out": "x"}
        )
    else:
        outcome = DatasetBuilt.model_validate({
            **base, "dataset_id": "d", "uri": "file:///d", "train_examples": 1, "eval_examples": 1,
            "data_cutoff": NOON, "spec": spec,
        })  # fmt: skip
    await save_outcome(store, outcome, built.places)
    return built


def parts(built: Build) -> tuple[set[str], set[str]]:
    train, held_out = (
        {example.prediction_ids[0] for example in part} for part in (built.dataset.train, built.dataset.eval)
    )
    return train, held_out


@pytest.mark.stack
async def test_a_published_version_decides_places_and_the_next_one_keeps_them(
    store: PostgresCorrectionStore, spec: TaskSpec
) -> None:
    await store.save([delivered(spec, number) for number in range(12)])
    first = await build(store, spec, "1")
    places = await store.places(spec.name)
    assert places == first.places
    assert list(places) == sorted(places)
    assert all((place.fingerprint is not None) == (place.fate is Fate.EVAL) for place in places.values())
    other = spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"eval_share": 0.6, "seed": 3})})
    second = await build(store, other, "2")
    assert parts(second) == parts(first)
    assert second.places == {}


@pytest.mark.stack
async def test_a_build_that_a_gate_stopped_decides_no_place(store: PostgresCorrectionStore, spec: TaskSpec) -> None:
    await store.save([delivered(spec, number) for number in range(12)])
    await build(store, spec, "1", fails=True)
    assert await store.places(spec.name) == {}


@pytest.mark.stack
async def test_a_second_outcome_of_a_cycle_decides_nothing(store: PostgresCorrectionStore, spec: TaskSpec) -> None:
    await store.save([delivered(spec, number) for number in range(8)])
    await build(store, spec, "1")
    before = await store.places(spec.name)
    await store.save([delivered(spec, number) for number in range(8, 12)])
    await build(store, spec, "1")
    assert await store.places(spec.name) == before


@pytest.mark.stack
async def test_a_held_out_row_attracts_after_its_text_has_expired(
    store: PostgresCorrectionStore, spec: TaskSpec
) -> None:
    await store.save([delivered(spec, number) for number in range(12)])
    _, held_out = parts(await build(store, spec, "1"))
    await store.expire(spec.name, NOON + timedelta(days=12))
    assert len(await store.places(spec.name)) == 12
    await store.save([delivered(spec, number, "copy", typo=True) for number in range(12)])
    train, _ = parts(await build(store, spec, "2"))
    copied = {name.replace("-p", "-copy") for name in held_out}
    assert copied and not copied & train


@pytest.mark.stack
async def test_who_is_forgotten_leaves_neither_place_nor_fingerprint(
    store: PostgresCorrectionStore, spec: TaskSpec
) -> None:
    await store.save([delivered(spec, number) for number in range(12)])
    _, held_out = parts(await build(store, spec, "1"))
    for number in (number for number in range(12) if f"{spec.name}-p{number}" in held_out):
        person, later = f"u{number}", NOON + timedelta(days=30)
        forgotten = SubjectForgotten(
            task=spec.name, task_revision=spec.revision, subject_hash=person, occurred_at=later
        )
        await store.forget(forgotten)
    places = await store.places(spec.name)
    assert len(places) == 12 - len(held_out)
    assert not any(place.fingerprint for place in places.values())


@pytest.mark.stack
async def test_no_place_is_stored_of_who_is_forgotten_during_a_build(
    store: PostgresCorrectionStore, spec: TaskSpec
) -> None:
    await store.save([delivered(spec, number) for number in range(12)])
    built = build_dataset(Inputs(await votes(store, spec), spec))
    await store.forget(
        SubjectForgotten(
            task=spec.name, task_revision=spec.revision, subject_hash="u3", occurred_at=NOON + timedelta(30)
        )
    )
    outcome = DatasetBuilt.model_validate({
        "task": spec.name, "task_revision": spec.revision, "cycle_id": f"{spec.name}-1", "dataset_id": "d",
        "uri": "file:///d", "train_examples": 1, "eval_examples": 1, "data_cutoff": NOON, "spec": spec,
    })  # fmt: skip
    await save_outcome(store, outcome, built.places)
    assert (await store.places(spec.name)).keys() == built.places.keys() - {f"{spec.name}-p3"}


@pytest.mark.stack
async def test_a_place_stays_where_a_reviewer_took_the_words_of_somebody_who_is_erased(
    store: PostgresCorrectionStore, spec: TaskSpec
) -> None:
    """The question is another person's, and was held out: its near-copies must not be trained on for that."""
    taken = [delivered(spec, number) for number in range(12)]
    taken = [d._replace(event=d.event.model_copy(update={"suggested_by": "wrote"})) for d in taken]
    await store.save(taken)
    places = (await build(store, spec, "1")).places
    later = NOON + timedelta(days=100)
    await store.forget(SubjectForgotten(task=spec.name, task_revision="r", subject_hash="wrote", occurred_at=later))
    assert await votes(store, spec) == []
    assert await store.places(spec.name) == places
