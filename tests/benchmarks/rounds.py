"""Targets asked in turn: each round visits all of them in an order of its own, so that none has the machine's best
moments; figures are medians over the rounds, and what a target adds is taken against the direct answer of its round."""

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


@dataclass(frozen=True)
class Run:
    """One target, asked for a while. Latencies in ms, to the last byte or, streaming, to the first token.

    `computed`: µs of processor time a request of all the target's processes; `root`: of the first of them alone, which
    is the one that answers. `busy`: the generator's own load; near 1 it is the bottleneck.
    """

    rate: float
    latency: dict[int, float]
    computed: float
    root: float
    busy: float


@dataclass(frozen=True)
class Case:
    """How a target is asked."""

    connections: int
    stream: bool = False


Rounds = list[dict[tuple[str, Case], Run]]


def visit(
    generator: Generator, targets: Sequence[Target], cases: Sequence[Case], rounds: int, seconds: float,
    say: Callable[[str], None],
) -> Rounds:  # fmt: skip
    """Ask all targets in all ways, `rounds` times, each time for `seconds`."""
    for target in targets:
        for stream in {case.stream for case in cases}:
            measure(generator, target, Case(16, stream), _WARM_SECONDS)
    found: Rounds = []
    order, dice = list(targets), random.Random(5)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        found.append({})
        for case in cases:
            dice.shuffle(order)
            for target in order:
                found[-1][target.name, case] = measure(generator, target, case, seconds)
    return found


def measure(generator: Generator, target: Target, case: Case, seconds: float) -> Run:
    """Ask one target in one way; what it still does afterwards (ship events) is its work too, and is waited for."""
    before = target.computed()
    body = target.body(case.stream)
    answered = generator.run(Load(target.url, target.headers, body, case.connections, seconds))
    target.settle()
    after = target.computed()
    spent = {pid: now - before.get(pid, 0.0) for pid, now in after.items()}
    cuts = statistics.quantiles(answered.first if case.stream else answered.seconds, n=100)
    time.sleep(0.1)
    return Run(
        rate=len(answered.seconds) / (answered.wall - SETTLE_SECONDS),
        latency={cut: cuts[cut - 1] * 1e3 for cut in CUTS},
        computed=sum(spent.values()) / answered.requests * 1e6,
        root=spent[target.pid] / answered.requests * 1e6,
        busy=answered.busy,
    )


def median(rounds: Rounds, name: str, case: Case, of: Callable[[Run], float]) -> float:
    return statistics.median(of(one[name, case]) for one in rounds)


def ratio(rounds: Rounds, name: str, peer: str, case: Case) -> float:
    """`name`'s requests/s over the peer's, round by round, median."""
    return statistics.median(one[name, case].rate / one[peer, case].rate for one in rounds)


def added(rounds: Rounds, name: str, case: Case, cut: int) -> float:
    """ms that `name` adds to the direct answer at this percentile, round by round, median."""
    return statistics.median(one[name, case].latency[cut] - one[DIRECT, case].latency[cut] for one in rounds)


GRID = ("who", "connections", "requests/s", "added p50 ms", "added p95 ms", "added p99 ms", "CPU µs a request")


def grid(rounds: Rounds, names: Iterable[str], cases: Iterable[Case]) -> list[tuple[str, ...]]:
    """Rows for `GRID`. The direct answer's are its latencies themselves."""
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
            shown = f"{name} (itself)" if name == DIRECT else name
            rows.append(
                (shown, str(case.connections), f"{rate:,.0f}", *(f"{ms:.2f}" for ms in latencies), f"{computed:,.0f}")
            )
    return rows
