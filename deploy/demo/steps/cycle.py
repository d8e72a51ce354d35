"""A cycle as the console tells it: which steps are done, how far the running one is, how it ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shared.errors import RatchetError

POLL_SECONDS = 0.5


class Tells(Protocol):
    """What following a cycle needs of the console."""

    async def cycle(self, cycle_id: str) -> dict[str, Any] | None: ...


class StepLate(RatchetError):
    """A step of the turn took longer than a demonstration waits."""


class StepBroke(RatchetError):
    """A service said that its step cannot finish. `service` and `step` say whose."""

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(f"{event['service']} could not finish {event['step']}: {event['reason']}", event["way_out"])
        self.service = str(event["service"])
        self.step = str(event["step"])


@dataclass(frozen=True)
class CyclePage:
    """One look at a cycle."""

    steps: tuple[dict[str, Any], ...]
    progress: dict[str, Any] | None

    @classmethod
    def of(cls, page: dict[str, Any] | None) -> CyclePage:
        page = page or {}
        return cls(tuple(page.get("steps") or ()), page.get("progress"))

    def events(self, topic: str) -> list[dict[str, Any]]:
        """All events of a topic, named without its version, oldest first."""
        return [step["event"] for step in self.steps if step["topic"].rsplit(".v", 1)[0] == topic]

    def last(self, topic: str) -> dict[str, Any] | None:
        events = self.events(topic)
        return events[-1] if events else None

    @property
    def stages(self) -> list[str]:
        return [event["stage"] for event in self.events("rollouts.changed")]


Look = Callable[[CyclePage], object]
"""Called at every poll. What it returns is a sign of life where it changes."""
Find = Callable[[CyclePage], dict[str, Any] | None]


def event_of(topic: str) -> Find:
    """Finds the cycle's event of a topic."""
    return lambda page: page.last(topic)


def stage_in(*stages: str) -> Find:
    """Finds the first change of the rollout to one of these stages."""
    return lambda page: next((e for e in page.events("rollouts.changed") if e["stage"] in stages), None)


async def follow(
    console: Tells, cycle_id: str, find: Find, seconds: float, look: Look, late: StepLate
) -> tuple[dict[str, Any] | None, CyclePage]:
    """Wait until `find` finds its event, calling `look` at every poll; None: the cycle ended without it.

    Raises StepBroke when a service gives its step up, `late` after `seconds` in which nothing changed (a slow machine
    is not a stalled step), and whatever `look` raises.
    """
    known: object = None
    deadline = time.monotonic() + seconds
    while True:
        page = CyclePage.of(await console.cycle(cycle_id))
        if event := find(page):
            return event, page
        broken = page.last("steps.failed")
        if broken is not None:
            raise StepBroke(broken)
        if page.last("cycles.finished"):
            return None, page
        if (news := (page, look(page))) != known:
            known, deadline = news, time.monotonic() + seconds
        if time.monotonic() > deadline:
            raise late
        await asyncio.sleep(POLL_SECONDS)


def rejected_examples(dataset_uri: str, most: int = 4) -> tuple[Counter[str], list[dict[str, Any]]]:
    """What the dataset refused, by reason, with an example each, from its `rejected.jsonl`; empty if not at hand."""
    path = Path(dataset_uri.removeprefix("file://")) / "rejected.jsonl"
    reasons: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    if not path.is_file():
        return reasons, examples
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        reasons[row["reason"]] += 1
        if reasons[row["reason"]] == 1 and len(examples) < most:
            examples.append(row)
    return reasons, examples


async def poll(check: Callable[[], Awaitable[bool]], seconds: float, late: StepLate) -> None:
    """Wait until `check` is true; raises `late` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not await check():
        if time.monotonic() > deadline:
            raise late
        await asyncio.sleep(POLL_SECONDS)
