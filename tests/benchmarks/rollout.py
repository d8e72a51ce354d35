"""How soon a rollout obeys its guards and its people, with 50 tasks present and load all along.

Gateway, shadow, deployer, Unleash, PostgreSQL and the broker are real processes; the engine is a fast stand-in.
Measured: a candidate whose streams break and one that is slow, from the answer that decides to the flag in Unleash and
to the gateway; each of the four flags turned by hand, from there to the pause in the history; requests without an
answer. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import psutil

from schemas.rollouts import Stage
from shared.kafka.topics import create_topics
from tests.benchmarks.table import Grid, Measured, report
from tests.conftest import ROOT, TestStack
from tests.e2e.rollouts.engine import Kind
from tests.e2e.rollouts.live import ENDS, LABELS, Live, live
from tests.e2e.rollouts.load import Load, load_on
from tests.e2e.rollouts.measure import Rollback, decided_at, flag_off, out_of_canary

TASKS = 50
ROUNDS, HAND_ROUNDS = 3, 1
MAX_REVERT_SECONDS, MAX_HAND_SECONDS = 5.0, 3.0
HANDS = {"primary": False, "rollback": True, "canary": True, "shadow": False}
"""A candidate in shadow has primary and shadow on, the others off: each flag is turned to what it is not."""
HELD_SECONDS = 5.0
"""For so long, under load and labels, nothing may raise a candidate's exposure that a hand has paused."""
QUIET_PACE = 5.0
IDLE_SECONDS = 10.0
HAND_PACES = (0.1, 0.1)


async def _quiet_tasks(system: Live, stack: AsyncExitStack) -> list[Load]:
    """Add the tasks beside the one that is measured, each with a candidate in shadow and a little traffic."""
    loads, at_once = [], asyncio.Semaphore(5)

    async def add() -> None:
        async with at_once:
            spec = await system.add_task()
            candidate = await system.add_candidate(spec, Kind.GOOD)
            await system.stage(candidate, Stage.SHADOW)
        loads.append(await stack.enter_async_context(load_on(system.gateway, spec.name, LABELS, (QUIET_PACE,))))

    await asyncio.gather(*(add() for _ in range(TASKS - 1)))
    return loads


async def _idle_deployer(system: Live) -> Measured:
    """Measure what the deployer costs while all tasks have a candidate in shadow and little happens."""
    process = psutil.Process(system.pids["deployer"])
    before = process.cpu_times()
    await asyncio.sleep(IDLE_SECONDS)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return Measured(f"deployer, {TASKS} candidates in shadow and little traffic", "cores", spent / IDLE_SECONDS)


async def _rollback(system: Live, kind: Kind) -> Rollback:
    spec = await system.add_task(min_canary_users=10_000)
    async with load_on(system.gateway, spec.name, LABELS) as load:
        candidate = await system.add_candidate(spec, kind)
        await system.stage(candidate, Stage.CANARY)
        user = await load.user_of(candidate)
        off, out, ended = await asyncio.gather(
            flag_off(system, spec.name), out_of_canary(load, user, candidate), system.stage(candidate, *ENDS)
        )
        if ended.change.stage is not Stage.REJECTED:
            raise SystemExit(f"{candidate} was not rolled back: {ended.change.reason}")
    decided = decided_at(load, kind, candidate, spec.rollout)
    print(f"{kind}: flag off after {off - decided:.2f} s, old adapter served after {out - decided:.2f} s", flush=True)
    return Rollback(off - decided, out - decided, len(load.dropped(broken_by=candidate)))


async def _hand(system: Live, flag: str) -> tuple[float, int, int]:
    """Turn a flag of a candidate in shadow. Returns the seconds to the pause in the history, rises, and drops."""
    spec = await system.add_task(min_canary_users=5)
    async with load_on(system.gateway, spec.name, LABELS, HAND_PACES) as load:
        candidate = await system.add_candidate(spec, Kind.GOOD)
        await system.stage(candidate, Stage.SHADOW)
        await system.turn(spec.name, flag, on=HANDS[flag])
        turned = time.monotonic()
        await system.paused(spec.name)
        seconds = time.monotonic() - turned
        await asyncio.sleep(HELD_SECONDS)
        rises = sum(move["stage"] in ("canary", "promoted") for move in await system.moves(spec.name))
        await system.turn(spec.name, flag, on=not HANDS[flag])
        await system.resume(spec.name)
        await system.stage(candidate, Stage.CANARY)  # It had earned it: nothing but the pause held it.
    return seconds, rises, len(load.dropped())


async def _measure(system: Live) -> list[Measured]:
    measured: list[Measured] = []
    dropped = rises = 0
    async with AsyncExitStack() as stack:
        quiet = await _quiet_tasks(system, stack)
        measured.append(await _idle_deployer(system))
        for kind, name in ((Kind.BREAKS, "streams that break"), (Kind.SLOW, "a slow candidate")):
            found = [await _rollback(system, kind) for _ in range(ROUNDS)]
            dropped += sum(rollback.dropped for rollback in found)
            measured += [
                _seconds(f"{name}: deciding answer to flag off", [f.flag for f in found], MAX_REVERT_SECONDS),
                _seconds(
                    f"{name}: deciding answer to old adapter served", [f.gateway for f in found], MAX_REVERT_SECONDS
                ),
            ]
        rounds = [await asyncio.gather(*(_hand(system, flag) for flag in HANDS)) for _ in range(HAND_ROUNDS)]
        for (flag, on), hands in zip(HANDS.items(), zip(*rounds, strict=True), strict=True):
            rises, dropped = rises + sum(h[1] for h in hands), dropped + sum(h[2] for h in hands)
            name = f"{flag} turned {'on' if on else 'off'} by hand to its pause in the history"
            measured.append(_seconds(name, [h[0] for h in hands], MAX_HAND_SECONDS))
    dropped += sum(len(load.dropped()) for load in quiet)
    measured.append(Measured("moves to more users while a hand held them", "moves", rises, max_value=0))
    measured.append(
        Measured("requests without a whole answer, the broken canary's aside", "requests", dropped, max_value=0)
    )
    return measured


def _seconds(name: str, values: Sequence[float], most: float) -> Measured:
    return Measured(f"{name} (worst of {len(values)})", "s", max(values), max_value=most)


async def _run(home_stack: TestStack) -> list[Measured]:
    settings = home_stack.start(["kafka", "postgres", "unleash"])
    await asyncio.to_thread(create_topics, settings)
    home = home_stack.home / "services"
    home.mkdir()
    async with live(settings, home) as system:
        return await _measure(system)


def main() -> None:
    """Run it and write the report."""
    home = ROOT / ".ratchet" / "bench" / "rollout"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    stack = TestStack(home)
    try:
        measured = asyncio.run(_run(stack))
    finally:
        stack.stop()
    shutil.rmtree(home, ignore_errors=True)
    setting = Grid("Setting", ("tasks", "rounds"), [(str(TASKS), str(ROUNDS))])
    report([], "rollout", measured, [setting])
