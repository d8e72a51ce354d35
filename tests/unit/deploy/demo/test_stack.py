"""Which stack a loop is played on: that of its own home."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.demo import stack as demo
from deploy.devstack import stack
from deploy.devstack.config import StackConfig
from deploy.devstack.part import Launch
from deploy.devstack.supervision import records
from tests.waiting import until


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StackConfig]:
    """A home beside services that answer at every address, whoever started them."""
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "probe_readiness", lambda url: None)
    yield StackConfig.load()
    stack.down()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The homes whose stacks were brought up, by a stand-in."""
    homes: list[str] = []

    def up(**options: Any) -> StackConfig:
        config = StackConfig.load()
        homes.append(str(config.home))
        return config

    monkeypatch.setattr(stack, "up", up)
    return homes


async def run_services(config: StackConfig, *parts: str) -> None:
    for part in parts:
        launch = Launch(argv=("sleep", "60"), cwd=str(config.home), grace_seconds=2.0)
        records.start_part(config, part, launch, "nowhere", {})
    await until(lambda: sum(record.running for record in records.read_all(config).values()) == len(parts))


def test_a_loop_is_not_played_on_services_of_another_home(home: StackConfig, started: list[str]) -> None:
    assert demo.bring_up(lambda message: None).home == home.home
    assert started == [str(home.home)]


@pytest.mark.parametrize("parts", [("services",), ("gateway", "console", "scheduler")])
async def test_what_runs_in_the_loops_own_home_is_not_brought_up_again(
    home: StackConfig, started: list[str], parts: tuple[str, ...]
) -> None:
    await run_services(home, *parts)
    demo.bring_up(lambda message: None)
    assert started == []
