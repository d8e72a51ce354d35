"""What users wrote: stored with the call that it is about, awaited while the lake lags, given up after a while."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.conversation import Answer, Call, Message, Role
from schemas.predictions import FeedbackGiven
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.votes import UserCorrection, resolve_votes, votes_of
from services.dataset_builder.feedback import UserFeedback
from services.dataset_builder.settings import DatasetBuilderSettings
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.delivery import Delivery, RecordPosition
from shared.privacy.erasure import ErasedSubjects
from shared.storage.predictions import AnsweredPrediction

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
CALL = Call(messages=(Message(role=Role.USER, content="where is it"),))
SPEC = TaskSpec(name="replies", kind=TaskKind.GENERATION, system_prompt="Reply.")


class Store:
    """PostgresCorrectionStore in memory, as far as feedback uses it."""

    def __init__(self) -> None:
        self.saved: list[tuple[UserCorrection, RecordPosition]] = []
        self.offsets: list[int] = []
        self.gone: dict[tuple[str, str], datetime] = {}

    async def save_user_corrections(
        self, found: Sequence[tuple[UserCorrection, RecordPosition]], deliveries: Sequence[Delivery[FeedbackGiven]]
    ) -> None:
        self.saved += found
        self.offsets += [delivery.offset for delivery in deliveries]

    async def skip(self, position: RecordPosition) -> None: ...

    async def erased(self, people: Iterable[tuple[str, str | None]]) -> ErasedSubjects:
        return ErasedSubjects(self.gone)


class Lake:
    def __init__(self) -> None:
        self.rows: dict[str, AnsweredPrediction] = {}
        self.look_ups: list[tuple[str, set[str], date]] = []

    def find(self, task: str, prediction_ids: Collection[str], around: date) -> dict[str, AnsweredPrediction]:
        self.look_ups.append((task, set(prediction_ids), around))
        return {key: self.rows[key] for key in prediction_ids if key in self.rows}

    def newest(self, until: datetime) -> datetime | None:
        return None

    def add(self, prediction_id: str) -> None:
        self.rows[prediction_id] = AnsweredPrediction(
            prediction_id, "replies", "r-old", NOON - timedelta(hours=1), CALL, Answer(text="lost"), 0.9, "asked",
            "shop",
        )  # fmt: skip


class Bench:
    def __init__(self, home: Path) -> None:
        self.store, self.lake, self.now = Store(), Lake(), NOON
        settings = DatasetBuilderSettings(home=home)
        self.feedback = UserFeedback(settings, self.store, self.lake, now=lambda: self.now)

    async def give(self, *events: FeedbackGiven) -> None:
        deliveries = [Delivery(event, "feedback.given.v1", 3, number, {}) for number, event in enumerate(events)]
        await self.feedback.on_feedback(deliveries)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def given(prediction_id: str = "p1", text: str | None = "We are sorry.", **fields: Any) -> FeedbackGiven:
    return FeedbackGiven.model_validate(
        {
            "occurred_at": NOON, "task": "replies", "task_revision": "r-new", "prediction_id": prediction_id,
            "kind": "edited", "text": text, "user_hash": "wrote", **fields,
        }
    )  # fmt: skip


async def test_an_edited_text_is_stored_with_its_call_and_the_revision_that_answered(bench: Bench) -> None:
    bench.lake.add("p1")
    await bench.give(given(kind="thumbs", text=None, positive=False), given())
    ((stored, position),) = bench.store.saved
    assert (stored.label, stored.call, stored.answers, stored.app) == (
        "We are sorry.", CALL, (Answer(text="lost"),), "shop",
    )  # fmt: skip
    assert (stored.task_revision, stored.author_hash, stored.user_hash) == ("r-old", "wrote", "asked")
    assert stored.happened_at == NOON - timedelta(hours=1)
    assert position == RecordPosition("feedback.given.v1", 3, 1)
    assert bench.store.offsets == [0, 1], "thumbs move the offset too"


async def test_a_batch_is_looked_up_at_once(bench: Bench) -> None:
    for name in ("p1", "p2", "p3"):
        bench.lake.add(name)
    await bench.give(given("p1"), given("p2", occurred_at=NOON - timedelta(days=3)), given("p3", kind="label"))
    assert bench.lake.look_ups == [("replies", {"p1", "p2", "p3"}, date(2026, 10, 30))]
    assert len(bench.store.saved) == 3


async def test_the_same_feedback_again_is_the_same_correction(bench: Bench) -> None:
    bench.lake.add("p1")
    event = given()
    await bench.give(event)
    await bench.give(event)
    assert bench.store.saved[0] == bench.store.saved[1]


async def test_who_changes_their_mind_back_is_heard(bench: Bench) -> None:
    """What a user wrote before the last word has its event id, since that follows from what they say."""
    bench.lake.add("p1")
    first = given()
    again = first.model_copy(update={"occurred_at": NOON + timedelta(minutes=2)})
    await bench.give(first, given(text="We apologise.", occurred_at=NOON + timedelta(minutes=1)), again)
    words = [stored for stored, _ in bench.store.saved]
    assert len({word.correction_id for word in words}) == 3
    (row,), _, _ = resolve_votes(votes_of([], words), SPEC, {})
    assert row.label == "We are sorry."


async def test_what_nobody_in_particular_sends_again_is_one_voice(bench: Bench) -> None:
    bench.lake.add("p1")
    bench.lake.rows["p1"] = replace(bench.lake.rows["p1"], user_hash=None)
    words = [given(user_hash=None, text=text, occurred_at=NOON + timedelta(minutes=n)) for n, text in enumerate("ABA")]
    await bench.give(*words)
    (row,), _, _ = resolve_votes(votes_of([], [stored for stored, _ in bench.store.saved]), SPEC, {})
    assert (row.label, len(row.voters)) == ("A", 1)


async def test_feedback_waits_for_the_lake_and_then_gives_up(bench: Bench) -> None:
    with pytest.raises(DependencyUnavailable):
        await bench.give(given("p8"), given("p9"))
    bench.now = NOON + timedelta(minutes=5)
    for name in ("p8", "p9"):
        with pytest.raises(InvalidMessage, match=name):
            await bench.give(given(name))
    assert not bench.store.saved


async def test_feedback_before_its_prediction_is_stored_once_the_lake_has_it(bench: Bench) -> None:
    with pytest.raises(DependencyUnavailable):
        await bench.give(given())
    bench.lake.add("p1")
    bench.now = NOON + timedelta(minutes=5)
    await bench.give(given())
    assert len(bench.store.saved) == 1


async def test_an_erased_persons_feedback_is_not_looked_up(bench: Bench) -> None:
    bench.store.gone["replies", "wrote"] = NOON
    await bench.give(given())
    assert not bench.lake.look_ups
    assert (bench.store.saved, bench.store.offsets) == ([], [0])


async def test_a_prediction_of_nobody_is_the_users_who_wrote_about_it(bench: Bench) -> None:
    bench.lake.add("p1")
    bench.lake.rows["p1"] = replace(bench.lake.rows["p1"], user_hash=None)
    await bench.give(given())
    assert bench.store.saved[0][0].user_hash == "wrote"
