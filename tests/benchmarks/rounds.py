"""Rounds of measurements. Each round visits all targets in a random order, so that none has the machine's best moments.

Figures are medians over the rounds. What a target adds is measured against the direct answer of the same round.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.benchmarks.load import SETTLE_SECONDS, Generator, Load
from tests.benchmarks.targets import Target

CUTS = (50, 95, 99)
DIRECT = "direct"
_WARM_SECONDS = 2.0
_DISTINCT = 64
"""Bodies of a case that take turns."""


@dataclass(frozen=True)
class Run:
    """One measurement of a target. Latencies in ms, to the last byte or, streaming, to the first token.

    `computed`: µs of processor time per request of all the target's processes; `root`: of the first of them alone,
    which answers. `sustained`: requests a second until the work of all of them is done, shipping included. `busy`: the
    generator's own load; near 1 it is the bottleneck.
    """

    rate: float
    sustained: float
    latency: dict[int, float]
    computed: float
    root: float
    busy: float


@dataclass(frozen=True)
class Case:
    """A kind of load. `kilobytes`: of the conversation before the question."""

    connections: int
    stream: bool = False
    kilobytes: int = 0


Rounds = list[dict[tuple[str, Case], Run]]


def visit(
    generator: Generator, targets: Sequence[Target], cases: Sequence[Case], rounds: int, seconds: float,
    say: Callable[[str], None],
) -> Rounds:  # fmt: skip
    """Measure all targets with all cases, `rounds` times, each time for `seconds`."""
    for target in targets:
        for stream, kilobytes in {(case.stream, case.kilobytes) for case in cases}:
            measure(generator, target, Case(16, stream, kilobytes), _WARM_SECONDS)
    measured: Rounds = []
    order, shuffler = list(targets), random.Random(5)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        measured.append({})
        for case in cases:
            shuffler.shuffle(order)
            for target in order:
                measured[-1][target.name, case] = measure(generator, target, case, seconds)
    return measured


def measure(generator: Generator, target: Target, case: Case, seconds: float) -> Run:
    """Measure one target with one case, the work included that it still does afterwards (shipping events)."""
    before = target.computed()
    bodies = [target.body(case.stream, case.kilobytes, seed) for seed in range(_DISTINCT)]
    result = generator.run(Load(target.url, target.headers, bodies, case.connections, seconds))
    answered = time.perf_counter()
    target.settle()
    settling = time.perf_counter() - answered
    after = target.computed()
    spent = {pid: now - before.get(pid, 0.0) for pid, now in after.items()}
    cuts = statistics.quantiles(result.first if case.stream else result.seconds, n=100)
    time.sleep(0.1)
    return Run(
        rate=len(result.seconds) / (result.wall - SETTLE_SECONDS),
        sustained=result.requests / (result.wall + settling),
        latency={cut: cuts[cut - 1] * 1e3 for cut in CUTS},
        computed=sum(spent.values()) / result.requests * 1e6,
        root=spent[target.pid] / result.requests * 1e6,
        busy=result.busy,
    )


def median(rounds: Rounds, name: str, case: Case, of: Callable[[Run], float]) -> float:
    return statistics.median(of(runs[name, case]) for runs in rounds)


def ratio(rounds: Rounds, name: str, peer: str, case: Case) -> float:
    """Return the ratio of `name`'s requests/s to the peer's: the median over the rounds."""
    return statistics.median(runs[name, case].rate / runs[peer, case].rate for runs in rounds)


def added(rounds: Rounds, name: str, case: Case, cut: int) -> float:
    """Return the ms that `name` adds to the direct answer at this percentile: the median over the rounds."""
    return statistics.median(runs[name, case].latency[cut] - runs[DIRECT, case].latency[cut] for runs in rounds)


GRID = ("who", "connections", "requests/s", "until all is shipped", "added p50 ms", "added p95 ms", "added p99 ms",
        "CPU µs a request")  # fmt: skip


def grid(rounds: Rounds, names: Iterable[str], cases: Iterable[Case]) -> list[tuple[str, ...]]:
    """Return the rows of a `GRID`. For the direct answer they hold its own latencies."""
    rows = []
    for case in cases:
        for name in names:
            latencies = [
                median(rounds, name, case, lambda run, cut=cut: run.latency[cut])  # type: ignore[misc]
                if name == DIRECT
                else added(rounds, name, case, cut)
                for cut in CUTS
            ]
            computed = median(rounds, name, case, lambda run: run.computed)
            rate = median(rounds, name, case, lambda run: run.rate)
            sustained = median(rounds, name, case, lambda run: run.sustained)
            shown = f"{name} (itself)" if name == DIRECT else name
            rows.append(
                (
                    shown,
                    str(case.connections),
                    f"{rate:,.0f}",
                    f"{sustained:,.0f}",
                    *(f"{ms:.2f}" for ms in latencies),
                    f"{computed:,.0f}",
                )
            )
    return rows
