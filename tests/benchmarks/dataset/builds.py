"""What a build of 100,000 examples costs, and of 20,000 conversations.

`RATCHET_BENCH_EXAMPLES` makes all of them smaller.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from itertools import islice
from statistics import median

import sqlalchemy as sa

from services.dataset_builder.main import NAME
from services.dataset_builder.tables import BUILDS, PLACES
from shared.settings import Settings
from shared.storage.database import build_engine
from tests.benchmarks.banking77 import task_spec
from tests.benchmarks.dataset.jobs import TimedBuild, mixed_questions, near_copies, store, timed_build
from tests.benchmarks.table import Grid, Measured
from tests.conftest import ROOT, TestStack

EXAMPLES = int(os.environ.get("RATCHET_BENCH_EXAMPLES", "100000"))
SMALL = min(10_000, EXAMPLES)
NEW = 500
NEXT_BUILDS = 5
"""One after the other, each with as many more: of one alone the machine's mood is a fifth."""
LOUD = min(20_000, EXAMPLES)
TALKS, TURNS = min(20_000, EXAMPLES), 30


def measure() -> tuple[list[Measured], list[Grid]]:
    """Build in a stack of its own."""
    home = ROOT / ".ratchet" / "bench" / "dataset"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    stack = TestStack(home)
    try:
        return _builds(stack.start(["postgres"])), []
    finally:
        stack.stop()
        shutil.rmtree(home, ignore_errors=True)


def _builds(settings: Settings) -> list[Measured]:
    small = _small(settings)
    spec, rows = task_spec("large"), list(islice(mixed_questions(1), EXAMPLES + NEXT_BUILDS * NEW))
    store(settings, spec, rows)
    cold = _shown("cold", timed_build(settings, spec, "large-cold", EXAMPLES))
    after = []
    for number in range(1, NEXT_BUILDS + 1):
        build = timed_build(settings, spec, f"large-next-{number}", EXAMPLES + number * NEW)
        after.append(_shown(f"next {number}", build).seconds)
    _forget_decisions(settings)
    warm = _shown("warm", timed_build(settings, spec, "large-warm", EXAMPLES))
    loud = task_spec("loud")
    store(settings, loud, [*near_copies(LOUD), *islice(mixed_questions(2), SMALL)])
    timed_build(settings, loud, "loud-cold", LOUD + SMALL)
    _forget_decisions(settings)
    mode = _shown("loud", timed_build(settings, loud, "loud", LOUD + SMALL))
    talks = task_spec("talks")
    store(settings, talks, list(islice(mixed_questions(4), TALKS)), turns=TURNS)
    long = _shown("conversations", timed_build(settings, talks, "talks", TALKS))
    return [
        Measured(f"{EXAMPLES:,} examples, nothing known", "s", cold.seconds, 900),
        Measured(f"{EXAMPLES:,} examples, embeddings known", "s", warm.seconds, 300),
        Measured(f"{NEW} more examples: median of {NEXT_BUILDS} builds", "s", median(after), 90),
        Measured(f"{NEW} more examples: slowest", "s", max(after)),
        Measured(f"a mode of {LOUD:,} near-copies among {SMALL:,} others, embeddings known", "s", mode.seconds),
        Measured(f"memory of a build of {SMALL:,}", "MiB", small.memory_mib),
        Measured(f"memory of a build of {EXAMPLES:,}", "MiB", max(cold.memory_mib, warm.memory_mib)),
        Measured(f"memory of a build of {TALKS:,} conversations of {TURNS} turns", "MiB", long.memory_mib, 3_072),
    ]


def _small(settings: Settings) -> TimedBuild:
    spec = task_spec("small")
    store(settings, spec, list(islice(mixed_questions(3), SMALL)))
    return _shown("small", timed_build(settings, spec, "small", SMALL))


def _shown(name: str, build: TimedBuild) -> TimedBuild:
    outcome = build.result.outcome
    print(f"{name}: {build.seconds:.1f} s, {build.memory_mib:.0f} MiB, {type(outcome).__name__}", flush=True)
    return build


def _forget_decisions(settings: Settings) -> None:
    """Forget what builds decided, but neither embeddings nor which corrections are without personal data."""

    async def delete() -> None:
        engine = build_engine(settings, NAME)
        async with engine.begin() as connection:
            for table in (BUILDS, PLACES):
                await connection.execute(sa.delete(table))
        await engine.dispose()

    asyncio.run(delete())
