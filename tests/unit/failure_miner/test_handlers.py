"""The handlers: suspects are stored and asked about once, feedback is looked up, a cycle is clustered or fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.base import Executable

from schemas.base import Event, Variant, utc_now
from schemas.conversation import Answer, Call, FinishReason, Message, Role, ToolCall
from schemas.cycles import CycleStarted, PartitionFence, StepFailed
from schemas.failures import MEMBERS_FILE, MODES_FILE, FailureMode, FailuresClustered, ModeMember
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import Confidence, FeedbackGiven, LoggedAnswer, PredictionLogged, SubjectForgotten
from schemas.task_settings import FailureSettings
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.failure_miner.domain import Vectors
from services.failure_miner.handlers import CORRECTIONS, Handlers
from services.failure_miner.sampling import plan_rates
from services.failure_miner.storage import PostgresSuspectStore
from services.failure_miner.tables import MODES, SAMPLING, SUSPECTS
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.delivery import Delivery, TopicPartition
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.predictions import AnsweredPrediction
from tests.database import Database

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SPEC = TaskSpec(
    name="support-desk",
    kind=TaskKind.CLASSIFICATION,
    system_prompt="Intent?",
    labels=("refund", "cancel"),
    failures=FailureSettings(min_cluster_size=4, review_budget_per_day=3, audit_share=0.0),
)


class Published:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.away = False

    async def publish(self, event: Event) -> None:
        if self.away:
            raise DependencyUnavailable("no broker")
        self.events.append(event)


class WordEmbedder:
    """Texts that begin with the same word lie together."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.texts += texts
        rows = np.zeros((len(texts), 384), dtype=np.float32)
        for i, text in enumerate(texts):
            rows[i, len(text.split()[0])] = 1.0
            rows[i, 100 + i % 50] = 0.05
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) if len(texts) else rows


class MemoryLookup:
    def __init__(self) -> None:
        self.rows: dict[str, AnsweredPrediction] = {}

    def find(self, task: str, prediction_ids: Collection[str], around: date) -> dict[str, AnsweredPrediction]:
        return {key: self.rows[key] for key in prediction_ids if key in self.rows}

    def newest(self, until: datetime) -> datetime | None:
        return None


REFUND = Answer(text="refund")


def asked(text: str) -> Call:
    return Call(messages=(Message(role=Role.SYSTEM, content="Intent?"), Message(role=Role.USER, content=text)))


def answer(number: int, confidence: float | None, calibration: str | None = "c1", **fields: object) -> LoggedAnswer:
    measured = Confidence(score=confidence, calibration=calibration)
    return LoggedAnswer.model_validate(
        {"prediction_id": f"p{number}", "text": "refund", "confidence": measured, **fields}
    )


def uncalibrated(number: int, confidence: float | None, text: str = "where is it") -> PredictionLogged:
    return prediction(number, None, text, answers=(answer(number, confidence, None),))


def prediction(number: int, confidence: float | None, text: str = "where is it", **other: object) -> PredictionLogged:
    return PredictionLogged.model_validate(
        {
            "occurred_at": NOON, "task": SPEC.name, "task_revision": SPEC.revision, "request_id": f"q{number}",
            "call": asked(text), "answers": (answer(number, confidence),), "model": "base", "variant": Variant.BASE,
            "latency_ms": 1.0, **other,
        }
    )  # fmt: skip


FENCE = (PartitionFence(topic="topic", partition=0, offset=1_000),)


def delivered(*events: Any) -> list[Delivery[Any]]:
    return [Delivery(event, "topic", 0, i, {}) for i, event in enumerate(events)]


def thumbs_down(prediction_id: str, minutes_ago: float = 0.0) -> FeedbackGiven:
    return FeedbackGiven(
        task=SPEC.name, task_revision=SPEC.revision, prediction_id=prediction_id, kind="thumbs", positive=False,
        occurred_at=NOON - timedelta(minutes=minutes_ago),
    )  # fmt: skip


def cycle(revision: str = SPEC.revision, cycle_id: str | None = "cycle-1") -> CycleStarted:
    return CycleStarted(
        task=SPEC.name, task_revision=revision, cycle_id=cycle_id, trigger="command", data_cutoff=NOON, fence=FENCE,
        occurred_at=NOON,
    )  # fmt: skip


class Bench:
    """The handlers on empty tables; the lake and what is published are in memory."""

    def __init__(self, home: Path, engine: AsyncEngine) -> None:
        self._engine = engine
        self.store = PostgresSuspectStore(engine, CORRECTIONS)
        self.published, self.predictions, self.now = Published(), MemoryLookup(), NOON
        settings, self.embedder = Settings(home=home), WordEmbedder()
        self.artifacts = ArtifactStore(settings.artifacts_uri, home / "cache")
        self.handlers = Handlers(
            settings, self.store, self.embedder, self.predictions, self.artifacts, self.published,
            now=lambda: self.now,
        )  # fmt: skip
        self.handlers.subscribe(Consumers(build_broker(settings, "failure_miner"), "failure_miner", settings))

    @property
    def questions(self) -> list[LabelRequested]:
        return [event for event in self.published.events if isinstance(event, LabelRequested)]

    async def execute(self, statement: Executable, rows: list[dict[str, Any]] | None = None) -> Any:
        async with self._engine.begin() as connection:
            return await connection.execute(statement, rows)

    async def suspects(self) -> dict[str, Any]:
        return {row.prediction_id: row for row in await self.execute(sa.select(SUSPECTS))}

    async def change(self, prediction_id: str, **values: object) -> None:
        """Change what is stored of a suspect."""
        await self.execute(sa.update(SUSPECTS).where(SUSPECTS.c.prediction_id == prediction_id).values(values))

    async def begin_day(self, rates: Mapping[str, float]) -> None:
        """Let a day begin, with these rates of strata and the usual ones of the others."""
        await self.execute(sa.delete(SAMPLING))
        planned = {"task": SPEC.name, "day": NOON.date(), "seen": 0, "asked": 0, "refused": 0}
        usual = plan_rates(SPEC.failures, {})
        rows = [{**planned, "stratum": name, "rate": rate} for name, rate in (usual | dict(rates)).items()]
        await self.execute(sa.insert(SAMPLING), rows)

    async def counted(self, stratum: str) -> Any:
        return (await self.execute(sa.select(SAMPLING).where(SAMPLING.c.stratum == stratum))).one()


@pytest.fixture
async def bench(tmp_path: Path, database: Database) -> Bench:
    made = Bench(tmp_path, await database.engine("failure_miner"))
    await made.handlers._tasks.put(SPEC.name, TaskChanged(task=SPEC.name, task_revision=SPEC.revision, spec=SPEC))
    return made


async def test_suspects_are_stored_and_asked_about(bench: Bench) -> None:
    await bench.handlers.on_predictions(
        delivered(prediction(1, 0.5), prediction(2, 0.9), prediction(3, 0.1), prediction(4, None))
    )
    assert set(await bench.suspects()) == {"p1", "p3", "p4"}
    assert [q.prediction_id for q in bench.questions] == ["p1", "p3", "p4"]
    assert {q.purpose for q in bench.questions} == {Purpose.LOW_CONFIDENCE}
    assert {q.inclusion_probability for q in bench.questions} == {1.0}


async def test_people_are_asked_up_to_the_adapters_own_threshold_and_what_is_probably_right_is_no_suspect(
    bench: Bench,
) -> None:
    answers = [
        answer(number, None).model_copy(update={"confidence": Confidence(score=score, calibration="c1", threshold=0.9)})
        for number, score in enumerate((0.5, 0.7, 0.9, 0.91))
    ]
    await bench.handlers.on_predictions(delivered(prediction(9, None, answers=tuple(answers))))
    assert [(q.prediction_id, q.purpose) for q in bench.questions] == [
        (name, Purpose.LOW_CONFIDENCE) for name in ("p0", "p1", "p2")
    ]
    assert set(await bench.suspects()) == {"p0"}, "the others, if people say they are wrong"


async def test_answers_without_a_calibration_are_asked_about_by_budget_whatever_their_confidence(bench: Bench) -> None:
    """Cold start: an uncalibrated confidence over the threshold must not hide that nearly every answer is wrong."""
    await bench.handlers.on_predictions(delivered(uncalibrated(1, 0.99), uncalibrated(2, 0.1), uncalibrated(3, None)))
    assert {q.purpose for q in bench.questions} == {Purpose.UNCALIBRATED}
    assert [q.prediction_id for q in bench.questions] == ["p1", "p2", "p3"]
    assert not await bench.suspects(), "what is wrong among them, people say"
    await bench.begin_day({"uncalibrated": 0.5})
    bench.published.events.clear()
    many = [uncalibrated(n, 0.01 if n % 2 else 0.99) for n in range(100, 140)]
    await bench.handlers.on_predictions(delivered(*many))
    assert len(bench.questions) == 3, "the budget"
    assert {q.inclusion_probability for q in bench.questions} == {0.5}


async def test_a_confident_answer_is_asked_about_by_the_audit_alone(bench: Bench) -> None:
    await bench.begin_day({"audit": 1.0})
    await bench.handlers.on_predictions(delivered(prediction(1, 0.99), prediction(2, 0.1)))
    assert [(q.prediction_id, q.purpose) for q in bench.questions] == [("p1", Purpose.AUDIT), ("p2", Purpose.AUDIT)]
    assert set(await bench.suspects()) == {"p2"}, "asked once, as an audit, and still a suspect"


async def test_a_complaint_about_a_suspect_that_nobody_was_asked_about_is_asked_about(bench: Bench) -> None:
    await bench.begin_day({"confidence .5": 0.0})
    await bench.handlers.on_predictions(delivered(prediction(1, 0.5)))
    assert not bench.questions
    bench.predictions.rows["p1"] = AnsweredPrediction(
        "p1", SPEC.name, SPEC.revision, NOON, asked("where is it"), REFUND, 0.5, None
    )
    await bench.handlers.on_feedback(delivered(thumbs_down("p1")))
    assert [(q.purpose, q.inclusion_probability) for q in bench.questions] == [(Purpose.FEEDBACK, 1.0)]


LOOK_UP = ToolCall(name="find_order", arguments='{"number": "4711"}', id="call_1")
WITH_TOOLS = Call(
    messages=(
        *asked("where are my orders").messages,
        Message(role=Role.ASSISTANT, tool_calls=(LOOK_UP,)),
        Message(role=Role.TOOL, content="on its way", tool_call_id="call_1"),
        Message(role=Role.USER, content="And 4712?"),
    ),
    tools=({"type": "function", "function": {"name": "find_order"}},),
)


async def test_a_conversation_with_tools_is_asked_about_whole_and_each_answer_is_a_question(bench: Bench) -> None:
    second = LOOK_UP.model_copy(update={"arguments": '{"number": "4712"}'})
    answers = (answer(1, 0.2, text="", tool_calls=(second,)), answer(2, 0.3), answer(3, 0.9))
    await bench.handlers.on_predictions(delivered(prediction(1, None, call=WITH_TOOLS, answers=answers)))
    assert [q.prediction_id for q in bench.questions] == ["p1", "p2"]
    assert all(q.call == WITH_TOOLS for q in bench.questions)
    assert bench.questions[0].answers[0].tool_calls == (second,)
    assert (await bench.suspects())["p1"].answer == bench.questions[0].answers[0].plain
    assert (await bench.suspects())["p1"].text.endswith("on its way\nAnd 4712?")
    assert len(bench.embedder.texts) == 1, "the answers of a request share their conversation"


async def test_a_truncated_conversation_is_a_suspect_that_nobody_is_asked_about_unless_a_user_complains(
    bench: Bench,
) -> None:
    cut = WITH_TOOLS.model_copy(update={"truncated": True})
    await bench.handlers.on_predictions(delivered(prediction(1, 0.1, call=cut)))
    assert set(await bench.suspects()) == {"p1"}
    assert not bench.questions
    bench.predictions.rows["p2"] = AnsweredPrediction("p2", SPEC.name, SPEC.revision, NOON, cut, REFUND, 0.9, None)
    await bench.handlers.on_feedback(delivered(thumbs_down("p2")))
    assert [(q.prediction_id, q.call.truncated) for q in bench.questions] == [("p2", True)]


async def test_an_answer_that_a_client_cut_is_no_suspect_whoever_calls_it_wrong(bench: Bench) -> None:
    left = answer(1, 0.1, finish_reason=FinishReason.CLIENT_LEFT)
    await bench.handlers.on_predictions(delivered(prediction(1, None, answers=(left,))))
    bench.predictions.rows["p1"] = AnsweredPrediction(
        "p1", SPEC.name, SPEC.revision, NOON, asked("where is it"), left, 0.1, None
    )  # fmt: skip
    await bench.handlers.on_feedback(delivered(thumbs_down("p1")))
    assert not await bench.suspects()
    assert not bench.questions


async def test_a_redelivered_prediction_asks_the_same_question(bench: Bench) -> None:
    for _ in range(2):
        await bench.handlers.on_predictions(delivered(prediction(1, 0.5)))
    first, again = bench.questions
    assert first.event_id == again.event_id
    assert len(await bench.suspects()) == 1


async def test_no_more_questions_are_asked_than_the_budget_allows(bench: Bench) -> None:
    await bench.handlers.on_predictions(delivered(*(prediction(i, 0.05 * i) for i in range(6))))
    assert [q.prediction_id for q in bench.questions] == ["p0", "p1", "p2"]
    assert len(await bench.suspects()) == 6


async def test_a_prediction_of_an_older_revision_is_stored_but_not_asked_about(bench: Bench) -> None:
    await bench.handlers.on_predictions(delivered(prediction(1, 0.1, task_revision="older")))
    assert set(await bench.suspects()) == {"p1"}
    assert not bench.questions


async def test_a_task_that_nobody_applied_is_awaited_and_then_dead_lettered(bench: Bench) -> None:
    unknown = prediction(1, 0.5, task="unheard-of", occurred_at=NOON - timedelta(minutes=2))
    bench.handlers._tasks.wait_for = never  # type: ignore[method-assign]
    with pytest.raises(DependencyUnavailable):
        await bench.handlers.on_predictions(delivered(unknown))
    await bench.handlers._tasks.read_to({})
    with pytest.raises(InvalidMessage, match="unheard-of"):
        await bench.handlers.on_predictions(delivered(unknown))


async def never(key: str, seconds: float = 0.0) -> TaskChanged:
    raise DependencyUnavailable(f"no value for {key}")


async def test_a_thumb_down_on_a_sure_answer_makes_a_suspect_and_a_question(bench: Bench) -> None:
    bench.predictions.rows["p9"] = AnsweredPrediction(
        "p9", SPEC.name, SPEC.revision, NOON, asked("where is it"), REFUND, 0.99, "u1"
    )  # fmt: skip
    await bench.handlers.on_feedback(delivered(thumbs_down("p9")))
    assert (await bench.suspects())["p9"].confidence == 0.99
    assert [q.purpose for q in bench.questions] == [Purpose.FEEDBACK]
    assert bench.questions[0].user_hash == "u1"


async def test_what_a_user_wrote_and_the_application_are_in_the_question(bench: Bench) -> None:
    bench.predictions.rows["p9"] = AnsweredPrediction(
        "p9", SPEC.name, SPEC.revision, NOON, asked("where is it"), REFUND, 0.99, "u1", "shop"
    )  # fmt: skip
    wrote = thumbs_down("p9").model_copy(update={"kind": "label", "positive": None, "text": "cancel"})
    await bench.handlers.on_feedback(delivered(wrote))
    await bench.handlers.on_predictions(delivered(prediction(1, 0.1, app="mail")))
    assert [(q.app, q.suggestion) for q in bench.questions] == [("shop", "cancel"), ("mail", None)]


async def test_a_thumb_down_on_a_suspect_that_was_asked_about_needs_no_lake(bench: Bench) -> None:
    await bench.handlers.on_predictions(delivered(prediction(1, 0.5)))
    await bench.handlers.on_feedback(delivered(thumbs_down("p1")))
    assert len(bench.questions) == 1


async def test_a_thumb_down_on_a_sure_answer_that_was_asked_about_makes_a_suspect_and_no_second_question(
    bench: Bench,
) -> None:
    """Of an arm without a calibration people may be asked about everything: then no thumb down counted."""
    in_lake(bench, "p1")
    await bench.begin_day({"audit": 1.0})
    await bench.handlers.on_predictions(delivered(prediction(1, 0.99)))
    assert not await bench.suspects()
    await bench.handlers.on_feedback(delivered(thumbs_down("p1")))
    assert set(await bench.suspects()) == {"p1"}
    assert [question.purpose for question in bench.questions] == [Purpose.AUDIT]


async def test_a_complaint_whose_question_was_stored_but_not_published_is_asked_at_its_redelivery(bench: Bench) -> None:
    in_lake(bench, "p9")
    bench.published.away = True
    with pytest.raises(DependencyUnavailable):
        await bench.handlers.on_feedback(delivered(thumbs_down("p9")))
    bench.published.away = False
    for _ in range(2):
        await bench.handlers.on_feedback(delivered(thumbs_down("p9")))
    first, again = bench.questions
    assert (first.prediction_id, first.purpose) == ("p9", Purpose.FEEDBACK)
    assert again.event_id == first.event_id


def edited(prediction_id: str, text: str = "cancel") -> FeedbackGiven:
    return thumbs_down(prediction_id).model_copy(update={"kind": "label", "positive": None, "text": text})


def in_lake(bench: Bench, prediction_id: str) -> None:
    bench.predictions.rows[prediction_id] = AnsweredPrediction(
        prediction_id, SPEC.name, SPEC.revision, NOON, asked("where is it"), REFUND, 0.99, "u1", "shop"
    )


async def test_a_text_says_more_than_a_thumb_down_that_comes_with_it(bench: Bench) -> None:
    in_lake(bench, "p9")
    await bench.handlers.on_feedback(
        delivered(edited("p9").model_copy(update={"surrogates": ("Ada",)}), thumbs_down("p9"))
    )
    (question,) = bench.questions
    assert (question.suggestion, question.suggestion_surrogates) == ("cancel", ("Ada",))
    assert question.purpose is Purpose.FEEDBACK


async def test_a_text_that_is_the_answer_itself_is_no_complaint(bench: Bench) -> None:
    """As where an application sends the right label of every case: most of them are what was answered."""
    in_lake(bench, "p8"), in_lake(bench, "p9")
    await bench.handlers.on_feedback(delivered(edited("p8", " Refund"), edited("p9", "refund"), thumbs_down("p9")))
    assert set(await bench.suspects()) == {"p9"}, "whose user has also put a thumb down"
    assert [(question.prediction_id, question.suggestion) for question in bench.questions] == [("p9", None)]


async def test_predictions_whose_questions_cannot_be_published_are_counted_once_however_often_they_come_again(
    bench: Bench,
) -> None:
    """They come again in turns: those of one partition, then those of the next."""
    batches = [
        delivered(*(prediction(10 * part + number, 0.99 if number else 0.1) for number in range(6)))
        for part in range(3)
    ]
    bench.published.away = True
    for batch in batches * 4:
        with pytest.raises(DependencyUnavailable):
            await bench.handlers.on_predictions(batch)
    bench.published.away = False
    for batch in batches:
        await bench.handlers.on_predictions(batch)
    assert (await bench.counted("audit")).seen == 18
    assert [question.prediction_id for question in bench.questions] == ["p0", "p10", "p20"]


async def test_a_complaint_that_the_budget_refused_is_counted_once_though_its_batch_comes_again(bench: Bench) -> None:
    for number in range(5):
        in_lake(bench, f"p{number}")
    batch = delivered(*(thumbs_down(f"p{number}") for number in range(5)))
    bench.published.away = True
    for _ in range(4):
        with pytest.raises(DependencyUnavailable):
            await bench.handlers.on_feedback(batch)
    bench.published.away = False
    await bench.handlers.on_feedback(batch)
    complaints = await bench.counted("feedback")
    assert (complaints.seen, complaints.asked, complaints.refused) == (5, 3, 2)
    assert len(bench.questions) == 3


async def test_a_question_that_is_asked_already_is_published_again_with_what_the_user_wrote(bench: Bench) -> None:
    in_lake(bench, "p1")
    await bench.handlers.on_predictions(delivered(prediction(1, 0.1, app="shop")))
    for _ in range(2):
        await bench.handlers.on_feedback(delivered(edited("p1")))
    first, again, redelivered = bench.questions
    assert (first.suggestion, again.suggestion, again.app) == (None, "cancel", first.app)
    assert again.request_id == first.request_id
    assert (again.purpose, again.inclusion_probability) == (first.purpose, first.inclusion_probability)
    assert again.priority == first.priority, "the answered questions of a sample must be a random part of it"
    assert redelivered.event_id == again.event_id != first.event_id


async def test_a_question_is_of_the_user_who_wrote_if_the_prediction_is_of_nobody(bench: Bench) -> None:
    in_lake(bench, "p9")
    bench.predictions.rows["p9"] = replace(bench.predictions.rows["p9"], user_hash=None)
    await bench.handlers.on_feedback(delivered(edited("p9").model_copy(update={"user_hash": "wrote"})))
    assert [question.user_hash for question in bench.questions] == ["wrote"]


async def test_a_suspect_and_its_question_are_of_who_gave_the_feedback_if_the_prediction_is_of_nobody(
    bench: Bench,
) -> None:
    """They hold the conversation, which must be found when that person asks to be forgotten."""
    for name, given in (("p8", thumbs_down("p8")), ("p9", edited("p9"))):
        in_lake(bench, name)
        bench.predictions.rows[name] = replace(bench.predictions.rows[name], user_hash=None)
        await bench.handlers.on_feedback(delivered(given.model_copy(update={"user_hash": "gave"})))
    stored = await bench.suspects()
    assert {name: stored[name].user_hash for name in ("p8", "p9")} == {"p8": "gave", "p9": "gave"}
    assert [question.user_hash for question in bench.questions] == ["gave", "gave"]


async def test_a_suspect_does_not_keep_what_somebody_else_wrote_than_who_was_answered(bench: Bench) -> None:
    """It is deleted when the person asks to be forgotten who was answered, not when the writer does."""
    for name, writer in (("p7", None), ("p8", "u1"), ("p9", "other")):
        in_lake(bench, name)
        bench.predictions.rows[name] = replace(bench.predictions.rows[name], user_hash="u1")
        await bench.handlers.on_feedback(delivered(edited(name).model_copy(update={"user_hash": writer})))
    labels = {name: suspect.label for name, suspect in (await bench.suspects()).items()}
    assert labels == {"p7": edited("p7").text, "p8": edited("p8").text, "p9": None}


async def test_an_audit_does_not_show_what_the_user_wrote(bench: Bench) -> None:
    await bench.begin_day({"audit": 1.0})
    in_lake(bench, "p1")
    await bench.handlers.on_predictions(delivered(prediction(1, 0.1)))
    await bench.handlers.on_feedback(delivered(edited("p1")))
    assert {(question.purpose, question.suggestion) for question in bench.questions} == {(Purpose.AUDIT, None)}


async def test_feedback_waits_for_the_lake_and_then_gives_up(bench: Bench) -> None:
    both = delivered(thumbs_down("p8"), thumbs_down("p9"))
    with pytest.raises(DependencyUnavailable):
        await bench.handlers.on_feedback(both)
    bench.now = NOON + timedelta(minutes=5)
    for delivery in both:
        with pytest.raises(InvalidMessage):
            await bench.handlers.on_feedback([delivery])


async def test_feedback_that_is_old_because_of_an_outage_waits_for_the_lake_too(bench: Bench) -> None:
    late = delivered(thumbs_down("p9", minutes_ago=300))
    with pytest.raises(DependencyUnavailable):
        await bench.handlers.on_feedback(late)
    bench.predictions.rows["p9"] = AnsweredPrediction(
        "p9", SPEC.name, SPEC.revision, NOON, asked("where"), REFUND, 0.99, "u1"
    )
    await bench.handlers.on_feedback(late)
    assert set(await bench.suspects()) == {"p9"}


def correction(prediction_id: str, label: str, purpose: Purpose = Purpose.FEEDBACK) -> CorrectionSubmitted:
    return CorrectionSubmitted(
        task=SPEC.name, task_revision=SPEC.revision, correction_id=f"c-{prediction_id}", request_id="r",
        prediction_id=prediction_id, purpose=purpose, reviewer="ana", call=asked("where is it"),
        answers=(REFUND, Answer(text="cancel")) if purpose is Purpose.DISCORDANT_PAIR else (REFUND,), label=label,
        ticket_id="t" if purpose is Purpose.DISCORDANT_PAIR else None,
    )  # fmt: skip


async def test_a_corrected_answer_becomes_a_suspect_and_a_confirmed_one_does_not(bench: Bench) -> None:
    await bench.handlers.on_corrections(
        delivered(
            correction("wrong", "cancel"),
            correction("right", "refund"),
            correction("pair", "cancel", Purpose.DISCORDANT_PAIR),
            correction("tie-break", "other", Purpose.TIE_BREAK).model_copy(
                update={"answers": (Answer(text="cancel"), REFUND)}
            ),
            correction("imported", "cancel", Purpose.IMPORT).model_copy(update={"answers": ()}),
            correction("imported, and asked about", "other", Purpose.SUSPICIOUS_LABEL).model_copy(
                update={"answers": ()}
            ),
        )
    )
    assert set(await bench.suspects()) == {"wrong"}
    partition = TopicPartition("topic", 0)
    assert await bench.store.next_offsets([partition]) == {partition: 6}, "all are read"


async def test_a_correction_waits_for_no_revision_and_is_kept_though_its_task_is_not_applied(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> TaskChanged:
        raise AssertionError("waits for a revision that is gone")

    monkeypatch.setattr(bench.handlers._tasks, "wait_until", never)
    earlier = correction("wrong", "cancel").model_copy(update={"task_revision": "earlier"})
    await bench.handlers.on_corrections(delivered(earlier))
    monkeypatch.setattr(bench.handlers._tasks, "is_missing", lambda task: task == "unknown")
    await bench.handlers.on_corrections(delivered(correction("other", "cancel").model_copy(update={"task": "unknown"})))
    assert set(await bench.suspects()) == {"wrong", "other"}


async def test_several_labels_in_another_order_correct_nothing_and_make_no_failure(bench: Bench) -> None:
    spec = TaskSpec.model_validate({**SPEC.model_dump(), "kind": "multi_label"})
    await bench.handlers._tasks.put(SPEC.name, TaskChanged(task=SPEC.name, task_revision=spec.revision, spec=spec))
    given = Answer(text='["refund", "cancel"]')
    same, other = (correction(name, text) for name, text in (("same", '["cancel","refund"]'), ("other", '["cancel"]')))
    await bench.handlers.on_corrections(
        delivered(*(event.model_copy(update={"answers": (given,)}) for event in (same, other)))
    )
    assert set(await bench.suspects()) == {"other"}
    low = prediction(0, 0.2, answers=(answer(0, 0.2, text=given.text),), task_revision=spec.revision)
    await bench.handlers.on_predictions(delivered(low))
    assert bench.questions[0].labels == ()  # Not one of them.
    bench.published.events.clear()
    await bench.change("p0", label='["cancel", "refund"]')
    await bench.handlers.on_cycle_started(cycle(spec.revision))
    (event,) = bench.published.events
    assert isinstance(event, FailuresClustered)
    assert event.suspects == 0


async def fill(bench: Bench) -> None:
    texts = [f"{word} {i}" for word in ("parcel", "ab") for i in range(8)]
    await bench.handlers.on_predictions(delivered(*(prediction(i, 0.2, text) for i, text in enumerate(texts))))
    bench.published.events.clear()


async def test_a_cycle_clusters_and_a_redelivery_publishes_the_same(bench: Bench) -> None:
    await bench.begin_day({"audit": 0.01})
    await fill(bench)
    await bench.handlers.on_cycle_started(cycle())
    await bench.execute(sa.delete(SUSPECTS))
    await bench.handlers.on_cycle_started(cycle())
    first, again = bench.published.events
    assert isinstance(first, FailuresClustered)
    assert first == again
    assert first.suspects == 16
    assert {mode.words[0] for mode in first.modes} == {"parcel", "ab"}
    assert (first.questions_drawn, first.audit_share) == ({Purpose.LOW_CONFIDENCE: 3}, 0.01)


async def test_the_modes_and_the_members_of_a_cycle_are_in_the_artifact_store(bench: Bench) -> None:
    await bench.handlers.on_corrections(delivered(correction("an-earlier-one", "cancel")))
    await bench.change("an-earlier-one", cycle_id="cycle-0", mode_id="mode-old")
    await fill(bench)
    await bench.handlers.on_cycle_started(cycle())
    (event,) = bench.published.events
    assert isinstance(event, FailuresClustered) and event.uri is not None
    folder = bench.artifacts.fetch(event.uri)
    members = [ModeMember.model_validate_json(line) for line in (folder / MEMBERS_FILE).open()]
    modes = [FailureMode.model_validate_json(line) for line in (folder / MODES_FILE).open()]
    assert [mode.mode_id for mode in modes] == [mode.mode_id for mode in event.modes]
    sizes = Counter(member.mode_id for member in members)
    assert sizes == {"mode-old": 1} | {mode.mode_id: mode.size for mode in modes}
    assert all(not mode.exemplars and not mode.sources for mode in modes), "text of nobody: artifacts are never changed"
    assert "parcel 1" not in (folder / MODES_FILE).read_text()


async def test_a_cycle_after_a_change_of_the_sentence_encoder_embeds_what_waits_again(bench: Bench) -> None:
    """Vectors of two encoders cannot be compared: every later cycle failed."""
    await fill(bench)
    of_before = np.eye(5, dtype=np.float32)[0]
    mode = {"mode_id": "mode-of-before", "name": "late", "task": SPEC.name, "task_revision": SPEC.revision}
    seen = {"first_cycle": "cycle-0", "last_cycle": "cycle-0"}
    await bench.execute(sa.insert(MODES).values(mode | seen | {"centroid": of_before.tobytes()}))
    await bench.change("p3", embedding=of_before.tobytes())
    await bench.handlers.on_cycle_started(cycle())
    (event,) = bench.published.events
    assert isinstance(event, FailuresClustered)
    assert (event.suspects, [mode.size for mode in event.modes]) == (16, [8, 8])
    assert all(mode.is_new for mode in event.modes)


async def test_answers_that_people_confirmed_are_no_failures(bench: Bench) -> None:
    await fill(bench)
    await bench.change("p3", label="Refund")
    await bench.handlers.on_cycle_started(cycle())
    (event,) = bench.published.events
    assert isinstance(event, FailuresClustered)
    assert event.suspects == 15
    assert {suspect.cycle_id for suspect in (await bench.suspects()).values()} == {"cycle-1"}


async def test_a_cycle_without_suspects_publishes_an_empty_clustering(bench: Bench) -> None:
    await bench.handlers.on_cycle_started(cycle())
    (event,) = bench.published.events
    assert isinstance(event, FailuresClustered)
    assert (event.suspects, event.noise, event.modes) == (0, 0, ())


@pytest.mark.parametrize(
    "name", ["predictions.logged", "feedback.given", "corrections.submitted", "subjects.forgotten"]
)
async def test_a_cycle_waits_until_everything_below_its_fence_is_stored(bench: Bench, name: str) -> None:
    """Erasures too: a database that was made anew reads its suspects again, and not yet whose must go."""
    fence = (PartitionFence(topic=f"{name}.v1", partition=3, offset=9),)
    with pytest.raises(DependencyUnavailable, match=f"{name}.v1/3"):
        await bench.handlers.on_cycle_started(cycle().model_copy(update={"fence": fence}))


async def test_a_task_that_changed_meanwhile_fails_the_step(bench: Bench) -> None:
    await bench.handlers.on_cycle_started(cycle(revision="older"))
    (event,) = bench.published.events
    assert isinstance(event, StepFailed)
    assert event.step == "failures"
    assert "ratchet cycle" in event.way_out


async def test_a_task_revision_that_is_not_read_yet_is_awaited(bench: Bench) -> None:
    newer = SPEC.model_copy(update={"system_prompt": "Which intent?"})
    early = cycle(revision=newer.revision).model_copy(update={"occurred_at": utc_now()})

    async def arrive() -> None:
        await asyncio.sleep(0.05)
        await bench.handlers._tasks.put(
            SPEC.name, TaskChanged(task=SPEC.name, task_revision=newer.revision, spec=newer)
        )

    await asyncio.gather(bench.handlers.on_cycle_started(early), arrive())
    assert isinstance(bench.published.events[0], FailuresClustered)


async def test_clustering_that_breaks_fails_the_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(bench)

    def broken(*_: object) -> None:
        raise ValueError("not today")

    monkeypatch.setattr("services.failure_miner.recipe.cluster", broken)
    await bench.handlers.on_cycle_started(cycle())
    (event,) = bench.published.events
    assert isinstance(event, StepFailed)
    assert event.reason == "not today"


async def test_a_cycle_without_an_id_is_invalid(bench: Bench) -> None:
    with pytest.raises(InvalidMessage):
        await bench.handlers.on_cycle_started(cycle(cycle_id=None))


async def test_a_question_says_when_its_prediction_was_made(bench: Bench) -> None:
    early = NOON - timedelta(hours=3)
    bench.predictions.rows["p9"] = AnsweredPrediction(
        "p9", SPEC.name, SPEC.revision, early, asked("where"), REFUND, 0.9, "u9"
    )  # fmt: skip
    await bench.handlers.on_predictions(delivered(prediction(1, 0.1, occurred_at=early)))
    await bench.handlers.on_feedback(delivered(thumbs_down("p9")))
    assert [(q.prediction_id, q.predicted_at) for q in bench.questions] == [("p1", early), ("p9", early)]


async def test_feedback_of_an_erased_person_is_not_looked_up(bench: Bench) -> None:
    await bench.store.forget(
        SubjectForgotten(task=SPEC.name, task_revision=SPEC.revision, subject_hash="u1", occurred_at=NOON)
    )
    theirs = thumbs_down("p1", minutes_ago=60).model_copy(update={"user_hash": "u1"})
    await bench.handlers.on_feedback(delivered(theirs))
    later = theirs.model_copy(update={"occurred_at": NOON + timedelta(minutes=1)})
    with pytest.raises(DependencyUnavailable, match="p1"):
        await bench.handlers.on_feedback(delivered(later))
