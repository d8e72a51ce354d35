"""kill -9 of every part, at random moments: those of one kind one after the other, the kinds in parallel."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from tests.chaos.rollouts.system import ENGINES, VLLM, RolloutSystem
from tests.chaos.system import BROKER, DATABASE, FLAGS, TANSU_ONLY

KINDS = ("deployer", "shadow", "gateway", "unleash", "postgres", "broker", "engine")
_BOTH_ENGINES = 0.3
"""Share of the engines' kills that hit both at once."""
_VLLM = 0.25
"""Share of them that hit vLLM, if it is up: it takes half a minute to come back, on a busy machine several."""


class Kills:
    """Plays `each` kills of every kind within about `seconds`. `played`: by kind; vLLM's are engines', too."""

    def __init__(self, system: RolloutSystem, each: int, seconds: float, seed: int) -> None:
        self._system = system
        self._each = each
        self._seconds = seconds
        self._random = random.Random(seed)
        self.played: Counter[str] = Counter()
        self._players: dict[str, Callable[[], Awaitable[bool]]] = {
            **{name: self._killer(name) for name in ("deployer", "shadow", "gateway")},
            "unleash": self._killer(FLAGS, wait=True),
            "postgres": self._killer(DATABASE, wait=True),
            "broker": self._kill_broker,
            "engine": self._kill_engine,
        }

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for kind in KINDS:
                group.create_task(self._play(kind))

    async def _play(self, kind: str) -> None:
        mean = self._seconds / max(1, self._each)
        while self.played[kind] < self._each:
            await asyncio.sleep(self._random.uniform(0.3, 1.6) * mean)
            self.played[kind] += await self._players[kind]()

    def _killer(self, name: str, *, wait: bool = False) -> Callable[[], Awaitable[bool]]:
        async def kill() -> bool:
            if not await self._kill(name):
                return False
            if wait:
                await self._system.wait_until_up(name)
            return True

        return kill

    async def _kill(self, name: str) -> bool:
        """kill -9 a program; wait for one that is restarting."""
        program = self._system.program(name)
        for _ in range(100):
            if program.running:
                await program.kill()
                return True
            await asyncio.sleep(0.1)
        return False

    async def _kill_broker(self) -> bool:
        if self._system.broker_kind == "tansu":
            was_played = await self._system.program(BROKER).kill_child(TANSU_ONLY)
        else:
            was_played = await self._kill(BROKER)
        await self._system.wait_until_up(BROKER)
        return was_played

    async def _kill_engine(self) -> bool:
        if self._random.random() < _VLLM and await self._system.vllm_is_up():
            await self._system.program(VLLM).kill(group=True)  # Its engine does not die with its server.
            self.played[VLLM] += 1
            return True
        both = self._random.random() < _BOTH_ENGINES
        victims = ENGINES if both else (self._random.choice(ENGINES),)
        return all(await asyncio.gather(*(self._kill(name) for name in victims)))
