"""Shadow catches up from a real Kafka, with a real PostgreSQL, on what was logged while its flag was off."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deploy.cli.shadow import replay
from schemas.base import utc_now
from schemas.catalog import topic_of
from schemas.predictions import PredictionLogged, SubjectForgotten
from schemas.rollouts import RolloutChanged, ShadowCompared, Stage
from services.shadow.backlog import CatchUp
from services.shadow.budget import Considered
from services.shadow.clients import Replay
from services.shadow.domain import Request
from services.shadow.handlers import Handlers
from services.shadow.main import MIGRATIONS
from services.shadow.replays import Replays
from services.shadow.settings import ShadowSettings
from services.shadow.storage import PostgresDecisions
from shared.errors import ConfigurationError
from shared.kafka.broker import build_broker
from shared.kafka.clients import TopicPartition, end_offsets
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.service import Service, running
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from tests.integration.consumer_groups import skip_backlog
from tests.unit.shadow.fakes import SPEC, BothArms, Load, OneTrainingIndex, Published, Sampling, answer, prediction
from tests.unit.shadow.fakes import rollout as any_rollout
from tests.waiting import until

pytestmark = pytest.mark.stack


class Gated(PostgresDecisions):
    """What new requests are decided waits while `live` is not set. All is decided on one day, whose budget it shares,
    also at midnight."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine, 4)
        self.now = utc_now()
        self.live = asyncio.Event()
        self.live.set()

    async def decide(self, requests: Sequence[Considered], now: datetime) -> list[Considered]:
        if not requests[0].from_backlog:
            await self.live.wait()
        return await super().decide(requests, self.now)


class GatedArms(BothArms):
    """The candidate does not answer while `answers` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
        replay = await super().candidate(rollout, request)
        await self.answers.wait()
        return replay


class Scene:
    """Shadow with a task and a database of its own; Unleash and vLLM in memory. `running` is a life of its process."""

    def __init__(self, settings: Settings, engine: AsyncEngine) -> None:
        self.task = f"task-{uuid4().hex[:8]}"
        self.settings = ShadowSettings(**settings.model_dump())
        self.decisions = Gated(engine)
        self.sampling, self.arms, self.published = Sampling(), GatedArms(), Published()
        self.broker = build_broker(settings, "test")
        spec = SPEC.model_copy(update={"name": self.task})
        self.rollout: RolloutChanged = any_rollout().model_copy(
            update={
                "task": self.task, "rollout_id": f"rollout-{self.task}", "spec": spec,
                "data_cutoff": utc_now() - timedelta(hours=30),
            }
        )  # fmt: skip

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        broker = build_broker(self.settings, "shadow")
        replays = Replays(self.arms, Load().is_busy, self.published, self.decisions, 4)
        handlers = Handlers(self.settings, self.sampling, OneTrainingIndex().for_rollout, self.decisions, replays)
        handlers.subscribe(Consumers(broker, "shadow", self.settings))
        catch_up = CatchUp(self.settings, self.decisions, handlers)
        tables = (handlers.rollouts, handlers.tasks)
        connected = [*(partial(table.read_to_end, self.settings) for table in tables), catch_up.run_forever]
        async with running([Service("shadow", broker, connected=connected)]):
            yield

    async def log(self, *numbers: int, hours_ago: float = 0.0, task: str = "") -> None:
        for number in numbers:
            await Publisher(self.broker, "gateway").publish(self.prediction(number, hours_ago, task or self.task))

    def prediction(self, number: int, hours_ago: float, task: str) -> PredictionLogged:
        return prediction(number).model_copy(
            update={
                "task": task, "request_id": f"{task}-{number}", "answers": (answer(name=f"{task}.{number}"),),
                "occurred_at": utc_now() - timedelta(hours=hours_ago),
            }
        )  # fmt: skip

    async def change(self, **changes: Any) -> None:
        await Publisher(self.broker, "deployer").publish(self.rollout.model_copy(update=changes))

    def pairs(self) -> Counter[int]:
        pairs = [event for event in self.published.events if isinstance(event, ShadowCompared)]
        return Counter(int(pair.prediction_id.rpartition(".")[2]) for pair in pairs)

    async def waiting(self) -> int:
        async with self.decisions._engine.begin() as connection:
            query = text("SELECT count(*) FROM decisions WHERE outcome = 'deferred'")
            return int(await connection.scalar(query) or 0)

    async def partitions(self) -> int:
        """Return in how many partitions a request was decided."""
        async with self.decisions._engine.begin() as connection:
            return int(await connection.scalar(text("SELECT count(DISTINCT partition) FROM decisions")) or 0)


@pytest.fixture
async def scene(stack_settings: Settings) -> AsyncIterator[Scene]:
    schema = f"shadow_{uuid4().hex[:8]}"
    await migrate(stack_settings, schema, MIGRATIONS)
    await skip_backlog(stack_settings, "shadow")
    engine = build_engine(stack_settings, schema)
    made = Scene(stack_settings, engine)
    await made.broker.start()
    await made.change()
    yield made
    await made.broker.stop()
    async with engine.begin() as connection:
        await connection.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))
    await engine.dispose()


async def waits(scene: Scene, number: int) -> bool:
    return await scene.waiting() >= number


async def has_no_backlog(scene: Scene) -> bool:
    return await scene.decisions.backlogs() == []


async def test_what_was_logged_while_the_flag_was_off_is_compared_later_each_request_once(scene: Scene) -> None:
    async with scene.running():
        await scene.log(1, 2, 3)
        await until(lambda: len(scene.pairs()) == 3)
        scene.sampling.on = False
        await scene.log(*range(4, 10))
        await scene.log(*range(100, 120), task="another")
        await until(lambda: waits(scene, 6))
        scene.sampling.on = True
        await scene.log(*range(10, 16))
        await until(lambda: len(scene.pairs()) == 15)
        scene.sampling.on = False
        await scene.log(16, 17)
        await until(lambda: waits(scene, 8))
    assert set(scene.pairs()) == set(range(1, 16))
    await scene.log(18, 19)
    scene.sampling.on = True
    async with scene.running():
        await until(lambda: len(scene.pairs()) == 19)
        await until(lambda: has_no_backlog(scene))
        await scene.log(20)
        await until(lambda: len(scene.pairs()) == 20)
    assert scene.pairs() == Counter(range(1, 21))
    assert len(scene.arms.asked) == 20
    (summary,) = await scene.decisions.summaries(scene.decisions.now)
    assert (summary.task, summary.requests) == (scene.task, {"pair": 20})


async def test_what_is_logged_while_a_backlog_is_worked_off_is_not_lost(scene: Scene) -> None:
    """The reader had read on beyond the backlog's end, the live consumer left the same requests to the backlog."""
    async with scene.running():
        scene.sampling.on, early = False, 0
        while await scene.partitions() < topic_of(PredictionLogged).partitions:  # The task's random name decides which.
            await scene.log(*range(early, early + 40))
            early += 40
            await until(partial(waits, scene, early), f"{early} wait")
        scene.decisions.live.clear()
        await scene.log(*range(early, early + 32))
        scene.arms.answers.clear()
        scene.sampling.on = True
        await until(lambda: scene.arms.asked)
        scene.decisions.live.set()
        await until(lambda: waits(scene, early + 32))
        scene.arms.answers.set()
        await until(lambda: len(scene.pairs()) == 20)  # The day's tokens.
        await until(lambda: has_no_backlog(scene))
    (summary,) = await scene.decisions.summaries(scene.decisions.now)
    assert summary.requests == {"pair": 20, "tokens": early + 12}


async def test_backlogs_take_turns(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task's backlog of a night held up those of all others for as long as it took."""
    monkeypatch.setattr("services.shadow.backlog.TURN_SECONDS", 0.0)
    monkeypatch.setattr("services.shadow.backlog.MAX_REQUESTS", 1)
    monkeypatch.setattr("services.shadow.handlers.MAX_REQUESTS", 1)
    scene.sampling.on = False
    async with scene.running():
        await scene.log(*range(24))
        await until(lambda: waits(scene, 24))
        scene.sampling.on = True
        await until(lambda: len(scene.pairs()) == 20)  # The day's tokens.
        await until(lambda: has_no_backlog(scene))
    async with scene.decisions._engine.begin() as connection:
        rows = await connection.execute(text("SELECT request_id, partition FROM decisions"))
        partitions: dict[str, int] = {row.request_id: row.partition for row in rows}
    ids = [
        event.prediction_id.replace(".", "-") for event in scene.published.events if isinstance(event, ShadowCompared)
    ]
    first = [partitions[request_id] for request_id in ids][: len(set(partitions.values()))]
    assert len(set(first)) == len(first) > 1


async def test_two_processes_ask_a_backlogs_requests_once(scene: Scene) -> None:
    """Of two answers to a request the first would count: the faster one, and none where one of them times out."""
    scene.sampling.on = False
    async with scene.running(), scene.running():
        await scene.log(*range(8))
        await until(lambda: waits(scene, 8))
        scene.arms.answers.clear()
        scene.sampling.on = True
        await until(lambda: scene.arms.asked)
        await asyncio.sleep(3.0)  # Time enough for the other process to look twice.
        scene.arms.answers.set()
        await until(lambda: has_no_backlog(scene))
    assert scene.pairs() == Counter(range(8))
    assert len(scene.arms.asked) == 8


async def test_what_was_logged_while_shadow_was_down_is_compared_but_nothing_that_is_too_old(scene: Scene) -> None:
    await scene.log(*range(1, 6), hours_ago=25.0)
    await scene.log(*range(6, 11), hours_ago=23.0)
    async with scene.running():
        await until(lambda: len(scene.pairs()) == 5)
    assert scene.pairs() == Counter(range(6, 11))
    (summary,) = await scene.decisions.summaries(scene.decisions.now)
    assert summary.requests == {"late": 5, "pair": 5}


async def test_the_backlog_of_a_rollout_that_has_ended_is_dropped(scene: Scene) -> None:
    scene.sampling.on = False
    async with scene.running():
        await scene.log(1, 2)
        await until(lambda: waits(scene, 2))
        await scene.change(stage=Stage.REJECTED)
        scene.sampling.on = True
        await until(lambda: has_no_backlog(scene))
    assert scene.arms.asked == []


async def test_a_replay_of_the_last_days_reads_kafka_and_neither_publishes_nor_spends(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "VllmEngine", lambda *_: scene.arms)
    monkeypatch.setattr(replay, "VllmLoad", lambda *_: Load())
    await scene.log(1, 2, 3, hours_ago=31.0)  # From before the cut-off.
    await scene.log(4, 5, hours_ago=1.0)
    await scene.log(6, hours_ago=24.0 * 9)
    forgotten = scene.prediction(7, 2.0, scene.task)
    await Publisher(scene.broker, "gateway").publish(forgotten)
    await Publisher(scene.broker, "scheduler").publish(
        SubjectForgotten(task=scene.task, task_revision="-", subject_hash=forgotten.user_hash or "")
    )
    topic = [TopicPartition(topic_of(ShadowCompared).name, number) for number in range(4)]
    before = await end_offsets(scene.settings, topic)
    found = await replay.replay_logged(scene.settings, scene.task, 7.0, 100)
    assert sorted(one.prediction_id.rpartition(".")[2] for one in found.comparisons) == ["1", "2", "3", "4", "5"]
    assert sum(one.before_cutoff for one in found.comparisons) == 3
    assert await end_offsets(scene.settings, topic) == before
    assert await scene.decisions.summaries(scene.decisions.now) == []
    with pytest.raises(ConfigurationError, match="has had no candidate yet"):
        await replay.replay_logged(scene.settings, "nobody", 7.0, 100)
