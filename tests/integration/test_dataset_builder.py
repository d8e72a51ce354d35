"""dataset_builder's stores on the real database: stored once, built from below the fence, erased for good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.base import Variant
from schemas.catalog import topic_named, topic_of
from schemas.conversation import Answer, Call, Message, Role, ToolCall
from schemas.cycles import CycleFinished, PartitionFence, StepFailed
from schemas.datasets import DatasetBuilt
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import FeedbackGiven, LabelCount, PredictionsRolledUp, SubjectForgotten
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.dataset_builder.building.carry_over import Revision
from services.dataset_builder.building.votes import UserCorrection, votes_of
from services.dataset_builder.handlers import Handlers
from services.dataset_builder.main import MIGRATIONS, NAME
from services.dataset_builder.pipeline import Inputs, build_dataset
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage.corrections import PostgresCorrectionStore, StoredCorrections
from services.dataset_builder.storage.traffic import PostgresTrafficStore
from services.dataset_builder.tables import CORRECTIONS, FORGOTTEN, OFFSETS
from shared.errors import DependencyUnavailable
from shared.kafka.broker import build_broker
from shared.kafka.clients import end_offsets
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery, RecordPosition, TopicPartition
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import Publisher
from shared.settings import Settings
from shared.storage.database import build_engine, transaction
from shared.storage.migration import migrate
from tests.integration.publishing import AbsentBroker, publish
from tests.waiting import PATIENCE_SECONDS, until

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
TOPIC, FEEDBACK = "corrections.submitted.v1", "feedback.given.v1"


@pytest.fixture
async def engine(stack_settings: Settings) -> AsyncIterator[AsyncEngine]:
    await migrate(stack_settings, NAME, MIGRATIONS)
    engine = build_engine(stack_settings, NAME)
    yield engine
    await engine.dispose()


@pytest.fixture
def store(engine: AsyncEngine) -> PostgresCorrectionStore:
    return PostgresCorrectionStore(engine)


@pytest.fixture
def task() -> str:
    """A task of its own for each test: they share the stack's database."""
    return f"builder-{uuid4().hex[:8]}"


def question(text: str) -> Call:
    return Call(messages=(Message(role=Role.USER, content=text),))


def delivered(
    task: str, offset: int, user_hash: str | None = None, revision: str = "r1"
) -> Delivery[CorrectionSubmitted]:
    event = CorrectionSubmitted(
        task=task, task_revision=revision, correction_id=f"{task}-c{offset}", request_id=f"r{offset}",
        prediction_id=f"{task}-p{offset}", purpose=Purpose.LOW_CONFIDENCE, reviewer="ana",
        call=question(f"question {offset}"), answers=(Answer(text="x"),), label="y", user_hash=user_hash,
    )  # fmt: skip
    return Delivery(event, TOPIC, 990, offset, {})


def fence(offset: int) -> tuple[PartitionFence, ...]:
    return (
        PartitionFence(topic=TOPIC, partition=990, offset=offset),
        PartitionFence(topic="predictions.logged.v1", partition=990, offset=10**9),
    )


async def below(store: PostgresCorrectionStore, task: str, fence: Sequence[PartitionFence]) -> StoredCorrections:
    found = StoredCorrections()
    async for searched in store.corrections_below(task, fence, "rules"):
        for part in searched:
            found.reviewers += part.reviewers
            found.users += part.users
    return found


async def clear_by(store: PostgresCorrectionStore, task: str, rules: str) -> list[str]:
    clear = [part.clear async for part in store.corrections_below(task, fence(10), rules)]
    return sorted(name for part in clear for name in ids(part))


def ids(found: StoredCorrections) -> list[str]:
    """Return the corrections' ids in order: the database gives them in none."""
    return sorted(event.correction_id.rpartition("-")[2] for event in (*found.reviewers, *found.users))


@pytest.mark.stack
async def test_a_redelivered_correction_is_stored_once(store: PostgresCorrectionStore, task: str) -> None:
    for _ in range(2):
        await store.save([delivered(task, 0), delivered(task, 1)])
    assert ids(await below(store, task, fence(10))) == ["c0", "c1"]


@pytest.mark.stack
async def test_what_is_clear_by_one_search_is_not_clear_by_another_and_goes_with_its_correction(
    store: PostgresCorrectionStore, task: str
) -> None:
    await store.save([delivered(task, number, user_hash=f"u{number}") for number in range(3)])
    await store.save_clear("rules", [f"{task}-c0", f"{task}-c1"])
    assert await clear_by(store, task, "rules") == ["c0", "c1"]
    assert ids(await below(store, task, fence(10))) == ["c0", "c1", "c2"]
    assert await clear_by(store, task, "other rules") == []
    assert await clear_by(store, "another-task", "rules") == []
    await store.forget(forget(task, "u1", datetime.now(UTC)))
    assert await clear_by(store, task, "rules") == ["c0"]


@pytest.mark.stack
async def test_a_conversation_with_tools_and_a_truncated_one_read_back_as_they_are(
    store: PostgresCorrectionStore, task: str
) -> None:
    calls = (ToolCall(name="find", arguments='{"n": 1}', id="c1"),)
    whole = Call(
        messages=(
            Message(role=Role.USER, content="where is it"),
            Message(role=Role.ASSISTANT, tool_calls=calls),
            Message(role=Role.TOOL, content="lost", tool_call_id="c1"),
        ),
        tools=({"type": "function", "function": {"name": "find"}},),
    )
    events = [
        delivered(task, number).event.model_copy(update={"call": call, "answers": (Answer(tool_calls=calls),)})
        for number, call in enumerate((whole, whole.model_copy(update={"truncated": True})))
    ]
    await store.save([Delivery(event, TOPIC, 990, number, {}) for number, event in enumerate(events)])
    found = await below(store, task, fence(2))
    assert sorted(found.reviewers, key=lambda event: event.correction_id) == events


@pytest.mark.stack
async def test_a_build_sees_what_is_below_its_fence_of_every_revision(
    store: PostgresCorrectionStore, task: str
) -> None:
    await store.save([delivered(task, 0), delivered(task, 1, revision="r2"), delivered(task, 5)])
    assert ids(await below(store, task, fence(5))) == ["c0", "c1"]
    assert await store.count_below(task, fence(5)) == 2
    assert await store.count_below(task, ()) == 0
    assert ids(await below(store, task, fence(6))) == ["c0", "c1", "c5"]
    assert ids(await below(store, task, ())) == []


def written(
    task: str, offset: int, user_hash: str | None = None, author_hash: str | None = None, at: datetime = NOON
) -> tuple[UserCorrection, Delivery[FeedbackGiven]]:
    """What a user wrote at noon about a prediction of an hour earlier."""
    prediction = f"{task}-p{offset}"
    event = FeedbackGiven(
        task=task, task_revision="r1", prediction_id=prediction, kind="edited", text="better", user_hash=author_hash,
        occurred_at=at,
    )  # fmt: skip
    correction = UserCorrection(
        correction_id=f"{task}-f{offset}", task=task, task_revision="r1", prediction_id=prediction, occurred_at=at,
        call=question(f"question {offset}"), answers=(Answer(text="x"),), label="better", author_hash=author_hash,
        user_hash=user_hash, predicted_at=at - timedelta(hours=1), app="shop",
    )  # fmt: skip
    return correction, Delivery(event, FEEDBACK, 990, offset, {})


async def save_written(store: PostgresCorrectionStore, *found: tuple[UserCorrection, Delivery[FeedbackGiven]]) -> None:
    deliveries = [delivery for _, delivery in found]
    positions = [RecordPosition(d.topic, d.partition, d.offset) for d in deliveries]
    await store.save_user_corrections([(c, p) for (c, _), p in zip(found, positions, strict=True)], deliveries)


@pytest.mark.stack
async def test_what_users_wrote_has_a_fence_of_its_own(store: PostgresCorrectionStore, task: str) -> None:
    await store.save([delivered(task, 7)])
    first, second = written(task, 3), written(task, 9)
    for _ in range(2):
        await save_written(store, first, second)
    both = (*fence(8), PartitionFence(topic=FEEDBACK, partition=990, offset=9))
    found = await below(store, task, both)
    assert found.users == [first[0]]
    assert ids(found) == ["c7", "f3"]
    assert await store.count_below(task, both) == len(found) == 2
    assert await store.unread([PartitionFence(topic=FEEDBACK, partition=990, offset=10)]) == []
    assert await store.corrections_of([first[0].prediction_id]) == [], "a tie-break is between reviewers"


@pytest.mark.stack
@pytest.mark.parametrize("forgotten_first", [True, False])
async def test_what_a_user_wrote_is_erased_with_its_author_and_with_the_person_it_is_about(
    store: PostgresCorrectionStore, task: str, forgotten_first: bool
) -> None:
    noon, later = NOON, NOON + timedelta(hours=2)
    rows = [
        written(task, 0, "asked", "wrote"), written(task, 1, "other", "wrote"), written(task, 2, "asked", "other"),
        written(task, 3, "other", None), written(task, 4, "other", "wrote", at=later),
    ]  # fmt: skip
    if not forgotten_first:
        await save_written(store, *rows)
    for person in ("asked", "wrote"):
        await store.forget(forget(task, person, noon))
    await save_written(store, *rows)
    everything = (PartitionFence(topic=FEEDBACK, partition=990, offset=100),)
    assert ids(await below(store, task, everything)) == ["f3", "f4"]


@pytest.mark.stack
@pytest.mark.parametrize("forgotten_first", [True, False])
async def test_what_a_reviewer_took_of_a_user_is_erased_with_that_user(
    store: PostgresCorrectionStore, task: str, forgotten_first: bool
) -> None:
    """Also where the reviewer took it after the request: the text is older, as the prediction is."""
    own, asked = delivered(task, 1, "asked"), delivered(task, 0, "asked")
    later = {"suggested_by": "wrote", "predicted_at": NOON, "occurred_at": NOON + timedelta(hours=1)}
    taken = asked._replace(event=asked.event.model_copy(update=later))
    (vote,) = votes_of([taken.event])
    assert vote.author_hash == "wrote", "lineage names whose words a version has"
    if not forgotten_first:
        await store.save([taken, own])
    await store.forget(forget(task, "wrote", NOON))
    await store.save([taken, own])
    assert ids(await below(store, task, fence(10))) == ["c1"]


@pytest.mark.stack
async def test_what_a_user_wrote_expires_with_its_prediction(store: PostgresCorrectionStore, task: str) -> None:
    await save_written(store, written(task, 0), written(task, 1, at=NOON + timedelta(days=1)))
    await store.expire(task, NOON)
    everything = (PartitionFence(topic=FEEDBACK, partition=990, offset=100),)
    assert ids(await below(store, task, everything)) == ["f1"]


@pytest.mark.stack
async def test_every_revision_of_a_task_is_known_later(store: PostgresCorrectionStore, task: str) -> None:
    specs = [
        TaskSpec(name=task, kind=TaskKind.CLASSIFICATION, system_prompt=prompt, labels=("x", "y"))
        for prompt in ("Old.", "New.")
    ]
    for spec in (*specs, specs[0]):
        await store.save_revision(TaskChanged(task=task, task_revision=spec.revision, spec=spec))
    kind = TaskKind.CLASSIFICATION
    found = await store.revisions(task)
    assert found == {s.revision: Revision(kind, s.system_prompt, s.answer_form) for s in specs}


def forget(task: str, subject_hash: str, at: datetime) -> SubjectForgotten:
    return SubjectForgotten(task=task, task_revision="r1", subject_hash=subject_hash, occurred_at=at)


@pytest.mark.stack
@pytest.mark.parametrize("forgotten_first", [True, False])
async def test_no_build_has_an_erased_person_whichever_event_comes_first(
    store: PostgresCorrectionStore, task: str, forgotten_first: bool
) -> None:
    rows = [delivered(task, 0, "u1"), delivered(task, 1, "u2"), delivered(task, 2)]
    if not forgotten_first:
        await store.save(rows)
    await store.forget(forget(task, "u1", datetime.now(UTC)))
    await store.save(rows)
    await store.advance(rows)
    assert ids(await below(store, task, fence(10))) == ["c1", "c2"]
    assert await store.corrections_of([f"{task}-p0"]) == []
    partition = PartitionFence(topic=TOPIC, partition=990, offset=3)
    assert await store.unread([partition]) == []


@pytest.mark.stack
async def test_a_correction_is_erased_by_the_time_of_its_prediction(store: PostgresCorrectionStore, task: str) -> None:
    def made(offset: int, predicted_at: datetime | None, corrected_at: datetime) -> Delivery[CorrectionSubmitted]:
        delivery = delivered(task, offset, "u1")
        times = {"predicted_at": predicted_at, "occurred_at": corrected_at}
        return Delivery(delivery.event.model_copy(update=times), TOPIC, 990, offset, {})

    hour = timedelta(hours=1)
    rows = [
        made(0, NOON - hour, NOON + hour),  # Corrected after the request to erase.
        made(1, NOON + hour, NOON + 2 * hour),
        made(2, None, NOON + hour),
        made(3, None, NOON - hour),
    ]
    for _ in range(2):
        await store.save(rows)
        await store.forget(forget(task, "u1", NOON))
        assert ids(await below(store, task, fence(10))) == ["c1", "c2"]


@pytest.mark.stack
async def test_corrections_of_expired_predictions_are_deleted(store: PostgresCorrectionStore, task: str) -> None:
    def made(offset: int, predicted_at: datetime) -> Delivery[CorrectionSubmitted]:
        event = delivered(task, offset).event.model_copy(update={"predicted_at": predicted_at, "occurred_at": NOON})
        return Delivery(event, TOPIC, 990, offset, {})

    await store.save([made(0, NOON - timedelta(days=2)), made(1, NOON - timedelta(days=1))])
    await store.expire("another-task", NOON)
    await store.expire(task, NOON - timedelta(days=1))
    assert ids(await below(store, task, fence(10))) == ["c1"]


@pytest.mark.stack
async def test_a_dead_lettered_record_advances_the_offset_too(store: PostgresCorrectionStore, task: str) -> None:
    partition = int(task[-6:], 16)
    wanted = [PartitionFence(topic=TOPIC, partition=partition, offset=8)]
    assert await store.unread(wanted) == wanted
    await store.skip(RecordPosition(TOPIC, partition, 7))
    assert await store.unread(wanted) == []


def hour(task: str, hours_ago: int, **answers: int) -> PredictionsRolledUp:
    return PredictionsRolledUp(
        task=task, task_revision="r1", hour=NOON - timedelta(hours=hours_ago), variant=Variant.BASE,
        predictions=sum(answers.values()), latency_ms_p50=1.0, latency_ms_p95=2.0,
        answers=tuple(LabelCount(answer=a, count=n) for a, n in answers.items()),
    )  # fmt: skip


@pytest.mark.stack
async def test_the_newest_value_of_an_hour_stays_where_an_older_one_is_read_again(
    engine: AsyncEngine, task: str
) -> None:
    store = PostgresTrafficStore(engine)
    first, second = hour(task, 0, refund=1), hour(task, 0, cancel=4)
    newer = second.model_copy(update={"occurred_at": first.occurred_at + timedelta(minutes=5)})
    for event in (first, newer, first, newer):
        await store.save_hour(event)
        await store.save_hour(first)
    assert await store.answer_counts(task, "r1", hours=24) == {"cancel": 4}


@pytest.mark.stack
async def test_the_last_value_of_an_hour_wins_and_old_hours_do_not_count(engine: AsyncEngine, task: str) -> None:
    store = PostgresTrafficStore(engine)
    for event in (
        hour(task, 30, refund=100),
        hour(task, 1, refund=3),
        hour(task, 0, refund=1),
        hour(task, 0, cancel=4),
    ):
        await store.save_hour(event)
    assert await store.answer_counts(task, "r1", hours=24) == {"refund": 3, "cancel": 4}
    assert await store.answer_counts(task, "r2", hours=24) == {}


@pytest.mark.stack
async def test_the_first_outcome_of_a_cycle_is_stored(store: PostgresCorrectionStore, task: str) -> None:
    failed = StepFailed(
        task=task, task_revision="r1", cycle_id=f"{task}-1", service=NAME, step="dataset", reason="r", way_out="w"
    )
    assert await store.outcome(f"{task}-1") is None
    await store.save_outcome(failed)
    await store.save_outcome(failed.model_copy(update={"reason": "other"}))
    assert await store.outcome(f"{task}-1") == failed


@pytest.mark.stack
async def test_an_erasure_waits_until_what_is_built_without_it_is_published_and_stored(
    store: PostgresCorrectionStore, task: str
) -> None:
    await store.save([delivered(task, 0), delivered(task, 1, user_hash="u1")])
    version = built(task, 1)
    async with store.concluding(task, fence(2), 2) as save:
        assert save is not None
        erasure = asyncio.create_task(store.forget(forget(task, "u1", datetime.now(UTC))))
        await asyncio.sleep(0.2)
        assert not erasure.done()
        await save(version, {})
    async with asyncio.timeout(PATIENCE_SECONDS):
        await erasure
    assert await store.outcome(f"{task}-1") == version


@pytest.mark.stack
async def test_a_build_of_corrections_that_are_erased_by_now_is_not_concluded(
    store: PostgresCorrectionStore, task: str
) -> None:
    await store.save([delivered(task, 0), delivered(task, 1, user_hash="u1")])
    await store.forget(forget(task, "u1", datetime.now(UTC)))
    async with store.concluding(task, fence(2), 2) as save:
        assert save is None
    async with store.concluding(task, fence(2), 1) as save:
        assert save is not None


def built(task: str, number: int) -> DatasetBuilt:
    spec = TaskSpec(name=task, kind=TaskKind.CLASSIFICATION, system_prompt="", labels=("x", "y"))
    return DatasetBuilt(
        task=task, task_revision=spec.revision, cycle_id=f"{task}-{number}", dataset_id=f"{task}-v{number}", uri="/x",
        train_examples=1, eval_examples=1, data_cutoff=NOON, spec=spec, occurred_at=NOON + timedelta(days=number),
    )  # fmt: skip


@pytest.mark.stack
async def test_the_last_version_is_the_newest_that_passed_and_knows_whether_its_cycle_failed_later(
    store: PostgresCorrectionStore, task: str
) -> None:
    assert await store.last_version(task) is None
    stopped = StepFailed(
        task=task, task_revision="r1", cycle_id=f"{task}-3", service=NAME, step="dataset", reason="r", way_out="w"
    )
    newest = built(task, 2)
    for event in (newest, built(task, 1), built(f"{task}-b", 9), stopped):
        await store.save_outcome(event)
    assert await store.last_version(task) == (newest, False)
    for outcome, failed in (("failed", True), ("rejected", False)):
        ended = CycleFinished(
            task=task, task_revision="r1", cycle_id=f"{task}-2", outcome=outcome, reason="r", seconds=1.0
        )
        await store.save_end(ended)
        assert await store.last_version(task) == (newest, failed)


def test_ten_thousand_corrections_are_built_in_seconds() -> None:
    spec = TaskSpec(name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="", labels=("x", "y"))
    words = "card parcel refund invoice address login voucher order delay price size colour return bank".split()  # noqa: SIM905
    rows = []
    for i in range(10_000):
        text = " ".join(words[(i * k + i // (k * 7)) % len(words)] for k in (1, 3, 5, 7, 11)) + f" {i * 7919}"
        event = delivered("desk", i).event
        rows.append(event.model_copy(update={"call": question(text)}))
    started = time.process_time()  # However busy the machine is: what grows with the square takes minutes of it.
    dataset = build_dataset(Inputs(votes_of(rows), spec)).dataset
    assert len(dataset.train) + len(dataset.eval) + len(dataset.left_out) == 10_000
    assert time.process_time() - started < 30.0


async def test_after_the_broker_lost_its_topics_old_corrections_count_and_new_ones_are_awaited(
    store: PostgresCorrectionStore, stack_settings: Settings, task: str
) -> None:
    old, new = [delivered(task, 700), delivered(task, 701)], [delivered(task, 2)]
    await store.save(old)
    await store.advance(old)
    try:
        await store.adopt(f"after the loss of {task}")
        few = PartitionFence(topic=TOPIC, partition=990, offset=3)
        assert await store.unread([few]) == [few], "701 were read of the old topic, none of the new"
        assert ids(await below(store, task, fence(3))) == ["c700", "c701"]
        await store.save(new)
        await store.advance(new)
        assert await store.unread([few]) == []
        assert ids(await below(store, task, fence(3))) == ["c2", "c700", "c701"]
        await store.adopt(f"after the loss of {task}")  # As at each start.
        assert await store.unread([few]) == []
    finally:
        await store.adopt(stack_settings.kafka_incarnation)


@pytest.mark.stack
async def test_corrections_are_read_again_until_the_question_that_follows_from_them_is_published(
    store: PostgresCorrectionStore, stack_settings: Settings, task: str
) -> None:
    """A service that ended in between goes on at the offset of its database: nobody would have been asked."""
    settings, publisher = DatasetBuilderSettings.load(home=stack_settings.home), AbsentBroker()
    spec = TaskSpec(name=task, kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=("x", "y", "z"))
    handlers = Handlers(settings, store, PostgresTrafficStore(store._engine), cast(Any, None), publisher)
    await handlers._tasks.put(task, TaskChanged(task=task, task_revision=spec.revision, spec=spec))
    position, ana = TopicPartition(f"corrections.{task}", 0), delivered(task, 0, revision=spec.revision).event
    ben = ana.model_copy(update={"correction_id": f"{task}-c1", "reviewer": "ben", "label": "z"})
    records = [Delivery(event, position.topic, 0, offset, {}) for offset, event in enumerate((ana, ben))]
    with pytest.raises(DependencyUnavailable):
        await handlers.on_corrections(records)
    assert await store.next_offsets([position]) == {}
    publisher.is_away = False
    await handlers.on_corrections(records)
    assert [question.prediction_id for question in publisher.published] == [ana.prediction_id]
    assert await store.next_offsets([position]) == {position: 2}


@pytest.mark.stack
async def test_a_database_that_was_made_anew_reads_what_the_group_has_committed_and_forgets_again(
    store: PostgresCorrectionStore, stack_settings: Settings, task: str
) -> None:
    """Else a cycle would wait for ever for those corrections, or be of people who asked to be forgotten."""
    settings = DatasetBuilderSettings.load(home=stack_settings.home)
    await publish(settings, "console", *(delivered(task, number, user_hash=f"u{number}").event for number in range(2)))
    await publish(settings, "scheduler", forget(task, "u1", datetime.now(UTC)))
    topics = {topic: topic_named(topic).partitions for topic in (TOPIC, topic_of(SubjectForgotten).name)}
    partitions = [TopicPartition(name, number) for name, count in topics.items() for number in range(count)]
    ends = (await end_offsets(settings, partitions)).items()
    wanted = [PartitionFence(topic=part.topic, partition=part.partition, offset=end) for part, end in ends]

    async def is_read() -> bool:
        return not await store.unread(wanted)

    for _ in range(2):
        async with transaction(store._engine) as connection:
            await connection.execute(sa.delete(OFFSETS).where(OFFSETS.c.topic.in_(topics)))
            for table in (CORRECTIONS, FORGOTTEN):
                await connection.execute(sa.delete(table).where(table.c.task == task))
        broker = build_broker(settings, NAME)
        handlers = Handlers(
            settings, store, PostgresTrafficStore(store._engine), cast(Any, None), Publisher(broker, NAME)
        )
        handlers.subscribe(OnlyPeople(broker, NAME, settings))
        await broker.start()
        try:
            await until(is_read)
        finally:
            await broker.stop()
        ends_of_all = [PartitionFence(topic=fence.topic, partition=fence.partition, offset=10**9) for fence in wanted]
        assert ids(await below(store, task, ends_of_all)) == ["c0"]


class OnlyPeople(Consumers):
    """Corrections and erasures: what other tests left on the other topics takes a while."""

    def on_batch(self, event: Any, *options: Any, **more: Any) -> None:
        if event in (CorrectionSubmitted, SubjectForgotten):
            super().on_batch(event, *options, **more)

    def on(self, event: Any, handler: Any) -> None: ...

    def table(self, *options: Any, **more: Any) -> LatestByKey[Any]:
        """It is read: nobody applied these tests' tasks."""
        table = super().table(*options)
        table._read.set()
        return table
