"""Shadow waits while production's requests wait in the engine, by vLLM's own metrics."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest

from schemas.base import utc_now
from services.shadow import load, replays
from services.shadow.domain import Outcome
from services.shadow.load import VllmLoad
from shared.errors import DependencyUnavailable, Paused
from shared.model.inference import InferenceClient
from tests.unit.shadow.fakes import Shadow, prediction

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="base"}} 16.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="base"}} {waiting}
vllm:num_requests_waiting{{engine="1",model_name="base"}} 0.0
# HELP vllm:num_requests_waiting_by_reason Number of requests waiting, by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{{engine="0",model_name="base",reason="capacity"}} 7.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="base"}} {usage}
"""


class Replicas:
    """Replicas behind httpx's mock transport: the text of their metrics, None: without any; or away."""

    def __init__(self, **metrics: str | None) -> None:
        self.metrics = metrics
        self.away: set[str] = set()
        self.reads = 0

    def load(self) -> VllmLoad:
        inference = InferenceClient([f"http://{host}" for host in self.metrics], 1.0)
        inference._client = httpx.AsyncClient(transport=httpx.MockTransport(self.handle))
        return VllmLoad(inference)

    def handle(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/metrics"
        self.reads += 1
        if request.url.host in self.away:
            raise httpx.ConnectError("refused")
        metrics = self.metrics[request.url.host]
        return httpx.Response(404 if metrics is None else 200, text=metrics or "")


def metrics(waiting: float = 0.0, usage: float = 0.1) -> str:
    return METRICS.format(waiting=waiting, usage=usage)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_READ_SECONDS", 0.0)
    monkeypatch.setattr(replays, "BUSY_PAUSE_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("one", "busy"),
    [
        (metrics(), False),
        (metrics(waiting=1.0), True),
        (metrics(usage=0.81), True),
        (metrics(usage=0.8), False),
        ("", False),
        (None, False),
    ],
)
async def test_one_replica_in_which_requests_wait_or_whose_cache_is_full_is_enough(one: str | None, busy: bool) -> None:
    assert await Replicas(one=one, two=metrics()).load().is_busy() is busy
    assert await Replicas(two=metrics(), one=one).load().is_busy() is busy


async def test_a_replica_that_is_away_is_not_busy_and_hides_no_other_one() -> None:
    replicas = Replicas(one=metrics(waiting=3.0), two=metrics(waiting=3.0))
    replicas.away = {"one"}
    assert await replicas.load().is_busy()
    replicas.away = {"one", "two"}
    assert not await replicas.load().is_busy()


async def test_replicas_are_read_at_once_and_one_that_hangs_is_not_waited_for_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They were read one after another: each reading waited two seconds for one that hung, and all replays with it."""
    monkeypatch.setattr("shared.model.inference._METRICS_SECONDS", 0.1)
    replicas = Replicas(one=metrics(), two=metrics(waiting=3.0), three=metrics())
    is_read, asked = {host: asyncio.Event() for host in ("two", "three")}, list[str]()

    async def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.host == "one":
            await asyncio.gather(*[event.wait() for event in is_read.values()])
            await asyncio.Event().wait()
        is_read[request.url.host].set()
        return replicas.handle(request)

    reader = replicas.load()
    reader._inference._client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    assert await reader.is_busy()
    assert all(event.is_set() for event in is_read.values()), "while the first one was not read"
    replicas.metrics["two"] = metrics()
    for _ in range(3):
        assert not await reader.is_busy()
    assert asked.count("one") == 1
    monkeypatch.setattr(load, "_AWAY_SECONDS", 0.0)
    reader._away_until.clear()
    await reader.is_busy()
    assert asked.count("one") == 2, "it is read again after a while"


async def test_a_pause_is_logged_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="services.shadow")
    replicas = Replicas(one=metrics(waiting=3.0))
    reader = replicas.load()
    for _ in range(20):
        assert await reader.is_busy()
    replicas.metrics["one"] = metrics()
    for _ in range(20):
        assert not await reader.is_busy()
    assert [record.message.partition(" after")[0] for record in caplog.records] == [
        "shadow waits while the engine is busy: 3 requests wait in http://one", "shadow goes on",
    ]  # fmt: skip


async def test_that_an_engine_has_no_metrics_of_vllm_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reader = Replicas(one=None).load()
    for _ in range(5):
        assert not await reader.is_busy()
    assert caplog.text.count("has no metrics of vLLM") == 1


async def test_many_replays_at_once_read_the_metrics_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_READ_SECONDS", 60.0)
    replicas = Replicas(one=metrics())
    reader = replicas.load()
    await asyncio.gather(*[reader.is_busy() for _ in range(50)])
    assert replicas.reads == 1


async def test_shadow_waits_while_the_engine_is_busy_and_loses_nothing(shadow: Shadow) -> None:
    shadow.load.busy_for = 50
    assert len(await shadow.replay(*map(prediction, range(5)))) == 5
    assert shadow.load.busy_for < 0


async def test_a_long_pause_ends_the_batch_in_time_and_the_requests_are_redelivered(
    shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka takes a partition away from a consumer whose batch takes too long."""
    monkeypatch.setattr(replays, "MAX_BATCH_SECONDS", 0.05)
    shadow.load.busy_for = 10**9
    with pytest.raises(Paused, match="5 replays wait"):
        await shadow.deliver(0, *map(prediction, range(5)))
    assert shadow.candidate.asked == []
    shadow.load.busy_for = 0
    assert len(await shadow.deliver(0, *map(prediction, range(5)))) == 5
    assert (shadow.replays._places["support-desk"]._value, shadow.replays._all_places._value) == (4, 16)


async def test_what_waits_until_it_is_too_old_is_left_out_and_counted(
    shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow.candidate.away = True
    with pytest.raises(DependencyUnavailable):
        await shadow.deliver(0, prediction(1))
    shadow.candidate.away = False
    monkeypatch.setattr("services.shadow.handlers.MAX_AGE", timedelta(seconds=36))
    assert await shadow.deliver(0, prediction(1), prediction(2)) == []
    assert await shadow.count() == {Outcome.BUSY: 1, Outcome.LATE: 1}
    assert len(await shadow.replay(prediction(3, occurred_at=utc_now() - timedelta(seconds=1)))) == 1
