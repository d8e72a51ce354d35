from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from deploy import runner
from shared.errors import DependencyUnavailable
from shared.kafka.broker import build_broker
from shared.service import Service
from shared.settings import Settings
from tests.waiting import PATIENCE_SECONDS

SETTINGS = Settings(kafka="127.0.0.1:9")


def service(serves: bool) -> Service:
    return Service("s", build_broker(SETTINGS, "s"), serves_before_broker=serves)


class UnavailableOnce:
    """A broker that answers at the second attempt."""

    def __init__(self) -> None:
        self.attempts = 0
        self.done = threading.Event()

    def __call__(self, settings: Settings) -> None:
        self.attempts += 1
        if self.attempts == 1:
            raise DependencyUnavailable("no broker answers")
        self.done.set()


async def test_services_that_serve_before_the_broker_do_not_wait_for_their_topics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = UnavailableOnce()
    monkeypatch.setattr(runner, "prepare_topics", broker)
    monkeypatch.setattr(runner, "_RETRY_SECONDS", 0.01)
    runner.ensure_topics([service(True), Service("jobs", None)], SETTINGS)
    assert broker.done.wait(PATIENCE_SECONDS)
    assert broker.attempts == 2


async def test_any_other_service_starts_after_its_topics_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "prepare_topics", UnavailableOnce())
    with pytest.raises(DependencyUnavailable):
        runner.ensure_topics([service(True), service(False)], SETTINGS)


def test_a_home_that_cannot_be_used_ends_the_process_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("sys.argv", ["runner", "prediction_log"])
    with pytest.raises(SystemExit) as ended:
        runner.main()
    assert str(ended.value.code).startswith(str(tmp_path / "file")) and "RATCHET_HOME" in str(ended.value.code)


def test_a_dependency_that_stays_away_ends_the_process_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def stays_away(settings: Settings) -> None:
        raise DependencyUnavailable("no broker answers at 127.0.0.1:9", "Is it running? ratchet status")

    monkeypatch.setattr(runner, "build_services", lambda names: [service(False)])
    monkeypatch.setattr(runner, "prepare_topics", stays_away)
    monkeypatch.setattr(sys, "argv", ["deploy.runner"])
    with pytest.raises(SystemExit, match=r"no broker answers at .*\nIs it running"):
        runner.main()


def test_a_misspelt_setting_is_in_the_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("RATCHET_GATEWAY_REQUIRE_KEY", "true")
    monkeypatch.setattr(sys, "argv", ["deploy.runner", "no_such_service"])
    with pytest.raises(SystemExit, match="no such service"):
        runner.main()
    assert "Did you mean RATCHET_GATEWAY_REQUIRE_KEYS?" in caplog.text
