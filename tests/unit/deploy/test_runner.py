from __future__ import annotations

import threading

import pytest

from deploy import runner as run
from shared.errors import DependencyUnavailable
from shared.kafka.broker import build_broker
from shared.service import Service
from shared.settings import Settings

SETTINGS = Settings(kafka="127.0.0.1:9")


def service(serves: bool) -> Service:
    return Service("s", build_broker(SETTINGS, "s"), serves_before_broker=serves)


class Away:
    """A broker that answers at the second try."""

    def __init__(self) -> None:
        self.tries = 0
        self.done = threading.Event()

    def __call__(self, settings: Settings) -> None:
        self.tries += 1
        if self.tries == 1:
            raise DependencyUnavailable("no broker answers")
        self.done.set()


async def test_services_that_serve_before_the_broker_do_not_wait_for_their_topics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = Away()
    monkeypatch.setattr(run, "prepare_topics", away)
    monkeypatch.setattr(run, "_TOPICS_SECONDS", 0.01)
    run.look_after_topics([service(True), Service("keeper", None)], SETTINGS)
    assert away.done.wait(5.0)
    assert away.tries == 2


async def test_with_any_other_service_among_them_topics_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "prepare_topics", Away())
    with pytest.raises(DependencyUnavailable):
        run.look_after_topics([service(True), service(False)], SETTINGS)
