"""failure_miner on the real database, the real lake and real sentences."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import sqlalchemy as sa

from schemas.base import Event
from schemas.catalog import topic_of
from schemas.conversation import Answer, Call, FinishReason, Message, Role, ToolCall
from schemas.cycles import PartitionFence
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.lake import PREDICTIONS
from schemas.predictions import Confidence, FeedbackGiven, LoggedAnswer, PredictionLogged, SubjectForgotten
from schemas.task_settings import FailureSettings
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.failure_miner.domain import WORDS_OF_ANOTHER, Suspect, Vectors
from services.failure_miner.handlers import Handlers
from services.failure_miner.main import MIGRATIONS, NAME
from services.failure_miner.modes import describe_modes
from services.failure_miner.recipe import cluster
from services.failure_miner.sampling import (
    AUDIT,
    BANDS,
    FEEDBACK,
    UNCALIBRATED,
    ReviewQuestion,
    Sighting,
    Sightings,
    sampling_point,
)
from services.failure_miner.storage import PostgresSuspectStore, _insert_suspects
from services.failure_miner.tables import OFFSETS, SAMPLING
from services.prediction_log.storage import DeltaLake
from shared.errors import DependencyUnavailable
from shared.kafka.broker import build_broker
from shared.kafka.clients import end_offsets
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery, TopicPartition
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import Publisher
from shared.model.embedding import SentenceEmbedder
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine, transaction
from shared.storage.migration import migrate
from shared.storage.predictions import LakePredictions
from tests.integration.publishing import AbsentBroker
from tests.unit.prediction_log.deliveries import delivery, prediction
from tests.waiting import until

DATA = Path(__file__).parents[2] / "deploy" / "demo" / "data" / "support_desk.csv"
NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
TODAY = date(2026, 11, 2)
RULES = FailureSettings(review_budget_per_day=10, audit_share=0.0)
NOTHING = Sightings((), {}, TODAY)


@pytest.fixture
async def store(stack_settings: Settings) -> AsyncIterator[PostgresSuspectStore]:
    await migrate(stack_settings, NAME, MIGRATIONS)
    engine = build_engine(stack_settings, NAME)
    yield PostgresSuspectStore(engine, "corrections.test")
    await engine.dispose()


@pytest.fixture
def task() -> str:
    """A task of its own for each test: they share the stack's database."""
    return f"miner-{uuid4().hex[:8]}"


def _task_with_audits(numbers: range, rate: float) -> str:
    """Return a new task's name for which some of these predictions are audited: the names decide that. They are ten at
    most: after twelve of a budget of twenty the rate falls."""
    while True:
        task = f"miner-{uuid4().hex[:8]}"
        if 0 < sum(sampling_point("audit", f"{task}.{number}") < rate for number in numbers) <= 10:
            return task


def suspect(task: str, number: int, **changes: object) -> Suspect:
    row = np.zeros(384, dtype=np.float32)
    row[number] = 1.0
    values = {
        "prediction_id": f"{task}.{number}", "task": task, "task_revision": "r1", "occurred_at": NOON,
        "text": f"text {number}", "answer": "refund", "confidence": 0.3, "topic": f"predictions.{task}",
        "partition": 0, "offset": number, "embedding": row,
    }  # fmt: skip
    return Suspect(**{**values, **changes})  # type: ignore[arg-type]


def fence(task: str, predictions: int = 100, corrections: int = 100) -> tuple[PartitionFence, ...]:
    return (
        PartitionFence(topic=f"predictions.{task}", partition=0, offset=predictions),
        PartitionFence(topic="corrections.test", partition=0, offset=corrections),
    )


def correction(task: str, number: int, label: str, offset: int) -> Delivery[CorrectionSubmitted]:
    event = CorrectionSubmitted(
        task=task, task_revision="r1", correction_id=f"c{offset}", request_id="r", prediction_id=f"{task}.{number}",
        purpose=Purpose.LOW_CONFIDENCE, reviewer="ana",
        call=Call(messages=(Message(role=Role.USER, content="x"),)), answers=(Answer(text="refund"),), label=label,
        occurred_at=NOON + timedelta(minutes=offset),
    )  # fmt: skip
    return Delivery(event, "corrections.test", 0, offset, {})


def clustered(task: str, cycle_id: str) -> FailuresClustered:
    return FailuresClustered(
        task=task, task_revision="r1", cycle_id=cycle_id, suspects=2, noise=0, modes=(), data_cutoff=NOON, fence=()
    )


@pytest.mark.stack
async def test_a_redelivered_suspect_is_stored_once_and_reads_back(store: PostgresSuspectStore, task: str) -> None:
    for _ in range(2):
        await store.save([suspect(task, 1, text="a \x00 b"), suspect(task, 2)], NOTHING)
    first, second = await store.unclustered(task, "r1", NOON, fence(task), 10)
    assert (first.prediction_id, first.text) == (f"{task}.1", "a  b")
    assert (second.embedding == suspect(task, 2).embedding).all()
    assert await store.stored_ids([f"{task}.1", "other"]) == {f"{task}.1"}


@pytest.mark.stack
async def test_a_cycle_takes_what_is_below_its_fence_and_of_its_revision(
    store: PostgresSuspectStore, task: str
) -> None:
    await store.save(
        [
            suspect(task, 1),
            suspect(task, 2, task_revision="r2"),
            suspect(task, 3, occurred_at=NOON + timedelta(hours=1)),
            suspect(task, 7),
        ],
        NOTHING,
    )
    taken = await store.unclustered(task, "r1", NOON, fence(task, predictions=7), 10)
    assert [s.prediction_id for s in taken] == [f"{task}.1"]
    assert await store.unclustered(task, "r1", NOON, (), 10) == []


@pytest.mark.stack
async def test_a_label_above_the_fence_is_not_in_the_cycle(store: PostgresSuspectStore, task: str) -> None:
    await store.save([suspect(task, 1)], NOTHING)
    await store.save_labels([correction(task, 1, "cancel", 5)], [])
    await store.save_labels([correction(task, 1, "older", 4)], [])
    (before,) = await store.unclustered(task, "r1", NOON, fence(task, corrections=5), 10)
    (after,) = await store.unclustered(task, "r1", NOON, fence(task, corrections=6), 10)
    assert before.label is None
    assert after.label == "cancel"


@pytest.mark.stack
async def test_of_a_persons_answers_the_newest_labels_a_suspect_and_cannot_tell_takes_it_back(
    store: PostgresSuspectStore, task: str
) -> None:
    def unsure(offset: int, reviewer: str) -> Delivery[CorrectionSubmitted]:
        given = correction(task, 1, "", offset)
        changes = {"label": None, "preference": "cannot_tell", "reviewer": reviewer}
        return Delivery(given.event.model_copy(update=changes), given.topic, 0, offset, {})

    async def label() -> str | None:
        (stored,) = await store.unclustered(task, "r1", NOON, fence(task), 10)
        return stored.label

    await store.save([suspect(task, 1)], NOTHING)
    await store.save_labels([correction(task, 1, "cancel", 5), correction(task, 1, "refund", 6)], [])
    assert await label() == "refund"
    await store.save_labels([unsure(7, "ben")], [])
    assert await label() == "refund", "ana gave it"
    await store.save_labels([unsure(8, "ana")], [])
    assert await label() is None
    await store.save_labels([correction(task, 1, "refund", 6)], [])
    assert await label() is None, "redelivered"


@pytest.mark.stack
async def test_an_older_answer_that_is_replayed_replaces_no_newer_one(store: PostgresSuspectStore, task: str) -> None:
    """`ratchet dlq replay` sends a dead letter to the end of its topic."""
    await store.save([suspect(task, 1)], NOTHING)
    older, newer = correction(task, 1, "refund", 4), correction(task, 1, "cancel", 5)
    await store.save_labels([newer], [])
    await store.save_labels([Delivery(again.event, again.topic, 0, 9, {}) for again in (older, newer)], [])
    (stored,) = await store.unclustered(task, "r1", NOON, fence(task, corrections=6), 10)
    assert stored.label == "cancel", "and it is below the fence still"


def sighting(task: str, number: int, stratum: str | None = UNCALIBRATED, user_hash: str | None = None) -> Sighting:
    return Sighting(f"{task}.{number}", task, "r1", NOON, user_hash, stratum, auditable=stratum != FEEDBACK)


def seen(task: str, *sightings: Sighting, rules: FailureSettings = RULES, days: int = 0) -> Sightings:
    return Sightings(sightings, {task: rules}, TODAY + timedelta(days=days))


def numbers(questions: Iterable[ReviewQuestion]) -> list[int]:
    return sorted(int(question.prediction_id.rpartition(".")[2]) for question in questions)


@pytest.mark.stack
async def test_a_redelivered_prediction_has_the_same_question_and_the_budget_is_spent_once(
    store: PostgresSuspectStore, task: str
) -> None:
    batch = seen(task, *(sighting(task, n) for n in range(30)))
    first = await store.save([], batch)
    assert numbers(first) == list(range(12)), "the budget and a fifth"
    again = await PostgresSuspectStore(store._engine, "corrections.test").save([], batch)  # After a restart.
    assert sorted(again, key=repr) == sorted(first, key=repr)
    assert await store.asked_otherwise([f"{task}.1", f"{task}.20"]) == {f"{task}.1"}


@pytest.mark.stack
async def test_the_rates_of_a_day_are_planned_from_the_day_before_and_fixed(
    store: PostgresSuspectStore,
) -> None:
    task = _task_with_audits(range(1_000, 1_300), rate=0.01)
    rules = FailureSettings(review_budget_per_day=20, audit_share=0.5)
    await store.save([], seen(task, *(sighting(task, n, None) for n in range(1_000)), rules=rules))
    tomorrow = [sighting(task, n, BANDS[1]) for n in range(1_000, 1_300)]
    questions: list[ReviewQuestion] = []
    for start in range(0, 300, 50):
        questions += await store.save([], seen(task, *tomorrow[start : start + 50], rules=rules, days=1))
    audits = [q.inclusion_probability for q in questions if q.purpose is Purpose.AUDIT]
    assert set(audits) == {0.01}, "ten of the thousand that were seen yesterday"
    assert len(questions) - len(audits) <= 24
    drawn, share = await store.sample_figures(task, NOON, None)
    assert share == 0.01
    assert drawn[Purpose.AUDIT] >= len(audits) + 10
    assert drawn[Purpose.LOW_CONFIDENCE] == len(questions) - len(audits)
    assert (await store.sample_figures(task, NOON, NOON))[0] == drawn
    assert (await store.sample_figures(task, NOON + timedelta(days=3), NOON + timedelta(days=2)))[0] == {}
    assert await store.sample_figures(task, NOON - timedelta(hours=1), None) == ({}, 0.01)
    assert (await store.sample_figures("another-task", NOON, None))[0] == {}


@pytest.mark.stack
async def test_a_complaint_that_was_read_before_its_prediction_takes_nothing_out_of_the_audit(
    store: PostgresSuspectStore, task: str
) -> None:
    rules = FailureSettings(review_budget_per_day=20, audit_share=1.0)
    (complaint,) = await store.save([], seen(task, sighting(task, 1, FEEDBACK), rules=rules))
    assert complaint.purpose is Purpose.FEEDBACK
    assert await store.asked_otherwise([f"{task}.1"]) == set(), "a redelivery of the complaint publishes it again"
    questions = await store.save([], seen(task, sighting(task, 1, UNCALIBRATED), rules=rules))
    assert {q.purpose for q in questions} == {Purpose.FEEDBACK, Purpose.AUDIT}
    again = await store.save([], seen(task, sighting(task, 1, UNCALIBRATED), rules=rules))
    assert {q.purpose for q in again} == {Purpose.FEEDBACK, Purpose.AUDIT}


@pytest.mark.stack
async def test_predictions_are_counted_by_kind_and_day(store: PostgresSuspectStore, task: str) -> None:
    kinds = [UNCALIBRATED, BANDS[2], None, FEEDBACK]
    await store.save([], seen(task, *(sighting(task, n, kinds[n % 4]) for n in range(40))))
    async with transaction(store._engine) as connection:
        rows = await connection.execute(sa.select(SAMPLING).where(SAMPLING.c.task == task))
        counts = {row.stratum: (row.seen, row.asked + row.refused) for row in rows}
    assert counts[AUDIT] == (30, 0)
    assert (counts[UNCALIBRATED], counts[BANDS[2]], counts[FEEDBACK]) == ((10, 10), (10, 10), (10, 10))


@pytest.mark.stack
async def test_clustered_suspects_are_in_no_later_cycle_and_modes_are_found_again(
    store: PostgresSuspectStore, task: str
) -> None:
    suspects = [suspect(task, 1), suspect(task, 2)]
    await store.save(suspects, NOTHING)
    found = describe_modes(suspects, [0, 0], [], f"{task}-cycle-1", 0.85)
    event = clustered(task, f"{task}-cycle-1")
    await store.save_clustering(event, suspects, found)
    assert await store.unclustered(task, "r1", NOON, fence(task), 10) == []
    assert await store.outcome(f"{task}-cycle-1") == event
    (mode,) = await store.modes(task, "r1")
    again = describe_modes(suspects, [0, 0], [mode], "cycle-2", 0.85)
    assert again[0].mode.mode_id == found[0].mode.mode_id
    assert not again[0].mode.is_new
    assert await store.labelled_members(task, "r1") == {}
    await store.save_labels([correction(task, 2, "cancel", 7)], [])
    assert await store.labelled_members(task, "r1") == {f"{task}.2": mode.mode_id}


@pytest.mark.stack
async def test_a_cycle_takes_more_suspects_than_a_statement_may_have_parameters(
    store: PostgresSuspectStore, task: str
) -> None:
    stored = suspect(task, 1)
    await store.save([stored], NOTHING)
    many = [replace(stored, prediction_id=f"{task}.{number}") for number in range(70_000)]
    event = clustered(task, f"{task}-cycle-1")
    assert await store.save_clustering(event, many, []) == event
    assert await store.unclustered(task, "r1", NOON, fence(task), 10) == []
    ids = [one.prediction_id for one in many]
    assert await store.stored_ids(ids) == {stored.prediction_id}
    assert await store.asked_otherwise(ids) == set()


@pytest.mark.stack
async def test_of_what_a_reviewer_took_of_another_user_no_word_is_kept(store: PostgresSuspectStore, task: str) -> None:
    await store.save([suspect(task, 1, user_hash="asked")], NOTHING)
    taken = correction(task, 1, "their words", 7)
    event = taken.event.model_copy(update={"suggested_by": "wrote"})
    await store.save_labels([taken._replace(event=event)], [])
    (found,) = await store.unclustered(task, "r1", NOON, fence(task), 10)
    assert found.label == WORDS_OF_ANOTHER


@pytest.mark.stack
async def test_what_its_user_writes_about_a_stored_suspect_becomes_its_label(
    store: PostgresSuspectStore, task: str
) -> None:
    """A doubted answer is stored first, and its user complains afterwards."""
    suspects = [suspect(task, 1, user_hash="ann"), suspect(task, 2, user_hash="ann"), suspect(task, 3)]
    await store.save(suspects, NOTHING)
    wrote = [replace(suspect, label="cancel") for suspect in suspects]
    wrote[1] = replace(wrote[1], user_hash="somebody else")
    await store.save(wrote, NOTHING)
    await store.save([replace(wrote[0], label="refund"), suspects[0]], NOTHING)
    found = {s.prediction_id: s.label for s in await store.unclustered(task, "r1", NOON, fence(task), 10)}
    assert found == {f"{task}.1": "cancel", f"{task}.2": None, f"{task}.3": "cancel"}


def forget(task: str, subject_hash: str, at: datetime = NOON) -> SubjectForgotten:
    return SubjectForgotten(task=task, task_revision="r1", subject_hash=subject_hash, occurred_at=at)


@pytest.mark.stack
@pytest.mark.parametrize("forgotten_first", [True, False])
async def test_nothing_of_an_erased_person_is_stored_or_asked_whichever_event_comes_first(
    store: PostgresSuspectStore, task: str, forgotten_first: bool
) -> None:
    people = [suspect(task, 1, user_hash="u1"), suspect(task, 2, user_hash="u2"), suspect(task, 3)]
    batch = seen(task, *(sighting(task, n, UNCALIBRATED, user) for n, user in ((1, "u1"), (2, "u2"), (3, None))))
    if not forgotten_first:
        await store.save(people, batch)
    await store.forget(forget(task, "u1"))
    assert await store.asked_otherwise([f"{task}.1"]) == set()
    assert numbers(await store.save(people, batch)) == [2, 3]
    await store.save_labels([], [people[0]])
    assert await store.stored_ids([f"{task}.{n}" for n in (1, 2, 3)]) == {f"{task}.2", f"{task}.3"}


@pytest.mark.stack
async def test_what_a_person_does_after_their_erasure_is_stored(store: PostgresSuspectStore, task: str) -> None:
    before, after = (suspect(task, n, user_hash="u1", occurred_at=NOON + timedelta(minutes=n - 1)) for n in (1, 2))
    for _ in range(2):
        await store.save([before, after], NOTHING)
        await store.forget(forget(task, "u1"))
        assert await store.stored_ids([before.prediction_id, after.prediction_id]) == {after.prediction_id}
    await store.forget(forget("another-task", "u1", NOON + timedelta(days=1)))
    await store.forget(forget(task, "u1", NOON - timedelta(days=1)))
    await store.save([before, after], NOTHING)
    assert await store.stored_ids([before.prediction_id, after.prediction_id]) == {after.prediction_id}
    await store.forget(forget(task, "u1", NOON + timedelta(hours=1)))
    await store.save([before, after], NOTHING)
    assert await store.stored_ids([before.prediction_id, after.prediction_id]) == set()


@pytest.mark.stack
async def test_failure_modes_quote_no_erased_person(store: PostgresSuspectStore, task: str) -> None:
    people = [suspect(task, n, user_hash=f"u{n}", text=f"what {n} wrote") for n in (1, 2, 3)]
    (found,) = describe_modes(people, [0, 0, 0], [], f"{task}-1", 0.0)
    event = clustered(task, f"{task}-1").model_copy(update={"modes": (found.mode,)})
    await store.save(people, NOTHING)
    await store.forget(forget(task, "u1"))  # After the cycle had read its suspects.
    stored = await store.save_clustering(event, people, [found])
    assert sorted(stored.modes[0].exemplars) == ["what 2 wrote", "what 3 wrote"]
    assert await store.outcome(f"{task}-1") == stored
    await store.forget(forget(task, "u2"))
    remaining = await store.outcome(f"{task}-1")
    assert remaining is not None
    assert (remaining.modes[0].exemplars, remaining.modes[0].size) == (("what 3 wrote",), 3)


@pytest.mark.stack
async def test_expired_suspects_are_deleted_and_failure_modes_no_longer_quote_them(
    store: PostgresSuspectStore, task: str
) -> None:
    early, late = (suspect(task, n, occurred_at=NOON + timedelta(days=n)) for n in (1, 2))
    (found,) = describe_modes([early, late], [0, 0], [], f"{task}-1", 0.0)
    asked = [replace(sighting(task, n), occurred_at=NOON + timedelta(days=n)) for n in (1, 2)]
    await store.save([early, late], seen(task, *asked))
    event = clustered(task, f"{task}-1").model_copy(update={"modes": (found.mode,)})
    await store.save_clustering(event, [early, late], [found])
    await store.expire("another-task", NOON + timedelta(days=9))
    await store.expire(task, late.occurred_at)
    assert await store.stored_ids([early.prediction_id, late.prediction_id]) == {late.prediction_id}
    assert await store.asked_otherwise([early.prediction_id, late.prediction_id]) == {late.prediction_id}
    stored = await store.outcome(f"{task}-1")
    assert stored is not None
    assert (stored.modes[0].exemplars, stored.modes[0].size) == ((late.text,), 2)


@pytest.mark.stack
async def test_a_row_written_while_its_person_is_erased_does_not_stay(store: PostgresSuspectStore, task: str) -> None:
    theirs = suspect(task, 1, user_hash="u1")
    async with transaction(store._engine) as connection:
        await _insert_suspects(connection, [theirs])
        erasure = asyncio.create_task(store.forget(forget(task, "u1")))
        await asyncio.sleep(0.3)  # Time enough to miss the row, which is not committed yet.
    await erasure
    assert await store.stored_ids([theirs.prediction_id]) == set()


@pytest.mark.stack
async def test_offsets_show_what_is_not_read_yet(store: PostgresSuspectStore, task: str) -> None:
    topic = f"predictions.{task}"
    wanted = (PartitionFence(topic=topic, partition=0, offset=3),)
    assert await store.unread(wanted) == list(wanted)
    delivery = correction(task, 1, "x", 2)
    await store.advance([Delivery(delivery.event, topic, 0, 2, {})])
    assert await store.unread(wanted) == []


class NoSentences:
    def embed(self, texts: Sequence[str]) -> Vectors:
        return np.zeros((len(texts), 384), dtype=np.float32)


@pytest.mark.stack
@pytest.mark.parametrize("kind", [PredictionLogged, FeedbackGiven])
async def test_a_record_is_read_again_until_the_questions_about_it_are_published(
    store: PostgresSuspectStore, stack_settings: Settings, task: str, tmp_path: Path, kind: type[Event]
) -> None:
    """A service that ended in between goes on at the offset of its database: nobody would ever be asked."""
    settings, publisher = Settings.load(home=stack_settings.home), AbsentBroker()
    spec = TaskSpec(name=task, kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=("refund", "cancel"))
    answered = LoggedAnswer(prediction_id=f"{task}.1", text="refund", confidence=Confidence(score=0.2))
    logged = prediction(task, NOON, task=task).model_copy(
        update={"task_revision": spec.revision, "answers": (answered,)}
    )
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(logged, 0)])
    complaint = FeedbackGiven(
        task=task, task_revision=spec.revision, prediction_id=answered.prediction_id, kind="thumbs",
        positive=False, occurred_at=NOON,
    )  # fmt: skip
    lake, artifacts = LakePredictions(str(tmp_path)), ArtifactStore(str(tmp_path), tmp_path)
    handlers = Handlers(settings, store, NoSentences(), lake, artifacts, publisher)
    await handlers._tasks.put(task, TaskChanged(task=task, task_revision=spec.revision, spec=spec))
    position = TopicPartition(f"records.{task}", 0)
    read = handlers.on_predictions if kind is PredictionLogged else handlers.on_feedback
    records: list[Any] = [Delivery(logged if kind is PredictionLogged else complaint, position.topic, 0, 7, {})]
    with pytest.raises(DependencyUnavailable):
        await read(records)
    assert await store.next_offsets([position]) == {}
    publisher.is_away = False
    await read(records)
    assert [question.prediction_id for question in publisher.published] == [complaint.prediction_id]
    assert await store.next_offsets([position]) == {position: 8}


@pytest.mark.stack
async def test_a_database_that_was_made_anew_reads_what_the_group_has_committed(
    store: PostgresSuspectStore, stack_settings: Settings, task: str
) -> None:
    """Else a cycle would wait for ever for those records, which are below its fence."""
    settings = Settings.load(home=stack_settings.home)
    name = topic_of(CorrectionSubmitted).name
    partitions = [TopicPartition(name, number) for number in range(topic_of(CorrectionSubmitted).partitions)]
    console = build_broker(settings, "console")
    await console.connect()
    await Publisher(console, "console").publish(correction(task, 1, "x", 0).event)
    await console.stop()
    ends = await end_offsets(settings, partitions)
    wanted = [PartitionFence(topic=name, partition=part.partition, offset=end) for part, end in ends.items()]
    for _ in range(2):
        async with transaction(store._engine) as connection:
            await connection.execute(sa.delete(OFFSETS).where(OFFSETS.c.topic == name))
        broker = build_broker(settings, NAME)
        lake, artifacts = LakePredictions(settings.lake_uri), ArtifactStore(settings.artifacts_uri, settings.home)
        handlers = Handlers(settings, store, NoSentences(), lake, artifacts, Publisher(broker, NAME))
        handlers.subscribe(OnlyCorrections(broker, NAME, settings))
        await broker.start()
        try:
            await until(lambda: is_read(store, wanted))
        finally:
            await broker.stop()


class OnlyCorrections(Consumers):
    """What other tests left on the other topics takes a while."""

    def on_batch(self, event: Any, *options: Any, **more: Any) -> None:
        if event is CorrectionSubmitted:
            super().on_batch(event, *options, **more)

    def on(self, event: Any, handler: Any) -> None: ...

    def table(self, *options: Any, **more: Any) -> LatestByKey[Any]:
        """It is read: nobody applied these tests' tasks."""
        table = super().table(*options)
        table._read.set()
        return table


async def is_read(store: PostgresSuspectStore, wanted: Sequence[PartitionFence]) -> bool:
    return not await store.unread(wanted)


def test_a_prediction_is_found_in_the_lake(tmp_path: Path) -> None:
    from deltalake import DeltaTable

    assert LakePredictions(str(tmp_path)).find("desk", ["p1"], date(2026, 11, 2)) == {}
    call = Call(
        messages=(
            Message(role=Role.USER, content="where is it"),
            Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="find", arguments="{}", id="c1"),)),
            Message(role=Role.TOOL, content="lost", tool_call_id="c1"),
        ),
        tools=({"type": "function", "function": {"name": "find"}},),
        truncated=True,
    )
    answer = Answer(text="Lost:", tool_calls=(ToolCall(name="find", arguments='{"n": 1}'),))
    answer = answer.model_copy(update={"finish_reason": FinishReason.TOOL_CALLS})
    for number, name in enumerate(("p1", "p2")):
        logged = LoggedAnswer(prediction_id=name, confidence=Confidence(score=0.9), **answer.model_dump())
        event = prediction(name, NOON, None, "desk").model_copy(update={"call": call, "answers": (logged,)})
        DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(event, number)])
    both = LakePredictions(str(tmp_path)).find("desk", ["p1", "p2", "p3"], date(2026, 11, 2))
    assert set(both) == {"p1", "p2"}
    found = both["p1"]
    assert (found.call, found.answer, found.confidence) == (call, answer, 0.9)
    assert LakePredictions(str(tmp_path)).find("other", ["p1"], date(2026, 11, 2)) == {}
    assert LakePredictions(str(tmp_path)).newest(NOON) == found.occurred_at
    assert LakePredictions(str(tmp_path)).newest(found.occurred_at - timedelta(seconds=1)) is None, "a clock is ahead"
    assert LakePredictions(f"{tmp_path}/none").newest(NOON) is None
    DeltaTable(f"{tmp_path}/{PREDICTIONS}").delete("prediction_id = 'p2'")  # The rest of its file is written anew.
    assert LakePredictions(str(tmp_path)).find("desk", ["p1", "p2"], date(2026, 11, 2)) == {"p1": found}


@pytest.mark.stack
def test_real_sentences_form_modes_that_are_mostly_one_intent(stack_settings: Settings) -> None:
    with DATA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = []
    for intent in ("login", "damaged", "warranty", "address"):
        chosen += [row for row in rows if row["label"] == intent][:30]
    embedder = SentenceEmbedder(stack_settings.models_folder / "all-MiniLM-L6-v2")
    vectors = embedder.embed([row["text"] for row in chosen])
    suspects = [suspect("desk", i, text=row["text"], embedding=vectors[i]) for i, row in enumerate(chosen)]
    found = describe_modes(suspects, cluster(vectors, 5, 2).tolist(), [], "cycle-1", 0.85)
    intents = [[chosen[i]["label"] for i in mode.members] for mode in found]
    majorities = [max(set(labels), key=labels.count) for labels in intents]
    medoids = [next(row["label"] for row in chosen if row["text"] == mode.mode.exemplars[0]) for mode in found]
    right = sum(labels.count(majority) for labels, majority in zip(intents, majorities, strict=True))
    assert len(set(majorities)) >= 2
    assert medoids == majorities
    assert right / sum(map(len, intents)) >= 0.8
