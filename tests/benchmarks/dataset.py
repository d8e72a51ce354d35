"""What a dataset's inspection finds, and what a build costs: label noise, near-copies, and builds of 100,000 examples.

`RATCHET_BENCH_EXAMPLES` (default 100,000) makes the builds smaller. Exits with 1 if an aim is missed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from itertools import islice
from statistics import mean, median

import sqlalchemy as sa
from threadpoolctl import threadpool_limits

from services.dataset_builder.main import NAME
from services.dataset_builder.tables import BUILDS, PLACES
from shared.model.embedding import CachedEmbedder, HalfVectors, SentenceEmbedder
from shared.settings import Settings
from shared.storage.database import build_engine
from tests.benchmarks import held_out, near_copies
from tests.benchmarks.builds import TimedBuild, banking77, mixed_questions, store, task_spec, timed_build
from tests.benchmarks.builds import near_copies as loud_mode
from tests.benchmarks.label_noise import BAR_RATE, KINDS, Banking77, Found, plot, sweep
from tests.benchmarks.table import RESULTS, Grid, Measured, report
from tests.conftest import ROOT, TestStack

EXAMPLES = int(os.environ.get("RATCHET_BENCH_EXAMPLES", "100000"))
SMALL = 10_000
NEW = 500
NEXT_BUILDS = 5
"""One after the other, each with as many more: of one alone the machine's mood is a fifth."""
LOUD = 20_000
TALKS, TURNS = 20_000, 30
_LISTED = 200


def main() -> None:
    """Run all parts and write the report."""
    home = ROOT / ".ratchet" / "bench" / "dataset"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    stack = TestStack(home)
    try:
        settings = stack.start(["postgres"])
        builds = _builds(settings)
        with threadpool_limits(1):  # As in a build.
            found = list(sweep(Banking77(*(_embedded(settings, part) for part in ("train", "test")))))
    finally:
        stack.stop()
        shutil.rmtree(home, ignore_errors=True)
    across = near_copies.across_the_split()
    measured = [*held_out.measured(), *_noise(found), *_near_copies(), *builds]
    grids = [_sweep_grid(found), _split_grid(across)]
    report([], "dataset", measured, grids)
    plot(found, RESULTS / "dataset-noise.png")


def _embedded(settings: Settings, part: str) -> HalfVectors:
    embedder = SentenceEmbedder(settings.models_folder / "all-MiniLM-L6-v2", fast=True)
    cache = ROOT / ".ratchet" / "bench" / f"banking77-{part}.vectors"
    return CachedEmbedder(embedder, cache, lambda done, total: None).embed([text for text, _ in banking77(part)])


def _noise(found: Sequence[Found]) -> list[Measured]:
    """The aims of label noise: found at the rate of the bar, and worth it at every rate."""
    measured = []
    for kind in KINDS:
        at_bar = [run for run in found if run.kind == kind and run.rate == BAR_RATE]
        noisy = [run for run in found if run.kind == kind]
        gain = min(run.repaired - run.noisy for run in noisy)
        recall, precision = mean(run.recall for run in at_bar), mean(run.precision for run in at_bar)
        measured += [
            Measured(f"{kind}, {BAR_RATE:.0%} wrong labels: found", "share", recall, min_value=0.8),
            Measured(f"{kind}, {BAR_RATE:.0%} wrong labels: precision", "share", precision, min_value=0.85),
            Measured(f"{kind}, 5 to 30 %: least gain of repairing", "accuracy", gain, min_value=0.0001),
        ]
    return [*measured, Measured("Banking77 as it is: held back", "share", found[0].share)]


def _near_copies() -> list[Measured]:
    equal, pairs = near_copies.wrongly_equal()
    return [
        *(
            Measured(f"planted near-copies grouped: {kind}", "share", share, min_value=0.95)
            for kind, share in near_copies.planted().items()
        ),
        Measured("Banking77: equal though their normalised texts differ", "texts", near_copies.merged_unequal(), 0),
        Measured(f"{pairs} pairs of other scripts and code: wrongly equal", "pairs", equal, 0),
    ]


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
    store(settings, loud, [*loud_mode(LOUD), *islice(mixed_questions(2), SMALL)])
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


def _sweep_grid(found: Sequence[Found]) -> Grid:
    columns = ("noise", "rate", "seed", "held back", "recall", "precision", "cleanlab's estimate", "accuracy as given",
               "repaired", "true labels")  # fmt: skip
    rows = [
        (
            run.kind, f"{run.rate:.0%}", str(run.seed), f"{run.share:.1%}", f"{run.recall:.1%}",
            f"{run.precision:.1%}", f"{run.estimate:.1%}", f"{run.noisy:.2%}", f"{run.repaired:.2%}",
            f"{run.true:.2%}",
        )
        for run in found
    ]  # fmt: skip
    return Grid("Planted label noise on Banking77's training part", columns, rows)


def _split_grid(across: Sequence[tuple[float, str, str]]) -> Grid:
    rows = [
        (f"{similarity:.2f}", " ".join(left.split()), " ".join(right.split())) for similarity, left, right in across
    ]
    title = f"Banking77's {len(across)} test questions that are near-copies of training questions"
    return Grid(title, ("Jaccard", "test", "train"), rows[:_LISTED])
