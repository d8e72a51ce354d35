"""The cost of a gateway per request: Ratchet, LiteLLM, Portkey, and a bare pass-through as the minimum in Python.

All forward to the same model server, which answers at once, in one run with one worker each. Ratchet runs as in
production: API keys, events in the encrypted spool before the answer leaves, a shipper to a real broker, flags from a
real Unleash, confidence measured. Only redaction is off: it is the shipper's work, and the benchmarks `redaction` and
`soak` have it. The processor time includes the shipper until all events are shipped. The load generator, the model
server, the broker and the target share this machine's cores.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.ports import take_ports
from shared.settings import Settings
from tests.benchmarks import targets
from tests.benchmarks.load import Generator
from tests.benchmarks.pipeline import private_stack
from tests.benchmarks.rounds import DIRECT, GRID, Case, Rounds, added, grid, median, ratio, visit
from tests.benchmarks.table import RESULTS, Grid, Measured, Result, report
from tests.benchmarks.targets import Target, Workspace

ROUNDS = int(os.environ.get("RATCHET_BENCH_ROUNDS", "5"))
SECONDS = float(os.environ.get("RATCHET_BENCH_SECONDS", "2"))
OURS, LITELLM, PORTKEY, BARE = "ratchet", "LiteLLM", "Portkey", "bare pass-through"
AIMS = {LITELLM: 20.0, PORTKEY: 2.0, BARE: 0.6}
"""Minimum ratio of Ratchet's requests/s to theirs."""
MAX_ADDED_MS = 0.5
"""Maximum that Ratchet may add at one connection, p50."""
WHOLE = [Case(connections) for connections in (1, 16, 64)]
STREAMED = [Case(connections, stream=True) for connections in (1, 16, 64)]
LONG = [Case(connections, kilobytes=100) for connections in (1, 16)]
MIN_RATIOS = {
    WHOLE[0]: {**AIMS, LITELLM: 10.0},
    WHOLE[1]: AIMS,
    WHOLE[2]: AIMS,
    STREAMED[-1]: {BARE: 0.6},
    LONG[0]: {PORTKEY: 2.0, BARE: 0.5},
    LONG[1]: {PORTKEY: 2.0},
}
"""Which aims each load has. At one connection the pass-through itself is 19 to 26 times as fast as LiteLLM. Sixteen
long conversations at once are measured beside the pass-through without an aim: docs/benchmarks.md says why."""


def main() -> None:
    """Run the benchmark and write its report."""
    with _running_stack() as stack:
        names = [target.name for target in stack.targets]
        rounds = visit(stack.generator, stack.targets, [*WHOLE, *STREAMED, *LONG], ROUNDS, SECONDS, _say)
    title = "whole answers" if len(names) == 5 else f"whole answers (not here: {', '.join(stack.missing)})"
    grids = [
        Grid("one connection", GRID, grid(rounds, names, WHOLE[:1])),
        Grid(title, GRID, grid(rounds, names, WHOLE[1:])),
        Grid("streamed: time to the first token", GRID, grid(rounds, names, STREAMED)),
        Grid("whole answers to conversations of 100 KB", GRID, grid(rounds, names, LONG)),
    ]
    report(_ratios(rounds, names), "gateway", _figures(rounds, names), grids)
    _plot(rounds, names)


@dataclass(frozen=True)
class Stack:
    """What runs during the measurement. `missing`: peers that could not be installed."""

    generator: Generator
    targets: list[Target]
    missing: list[str]


@contextlib.contextmanager
def _running_stack() -> Iterator[Stack]:
    with (
        private_stack("gateway", ("kafka", "postgres", "unleash")) as (settings, env),
        contextlib.ExitStack() as contexts,
    ):
        workspace = Workspace(StackConfig.load(settings.home, env), targets.plain_environment() | env)
        (port,) = take_ports(1)
        direct = contexts.enter_context(workspace.target(DIRECT, targets.upstream(port), port))
        to = direct.url.removesuffix("/v1/chat/completions")
        found, missing = [direct], []
        for name, start in _starts(workspace, settings, to).items():
            _say(f"starting {name}")
            try:
                found.append(contexts.enter_context(start()))
            except PartError as error:
                _say(f"{name} skipped: {error.reason}\n{error.way_out}")
                missing.append(name)
        yield Stack(contexts.enter_context(Generator()), found, missing)


def _starts(
    workspace: Workspace, settings: Settings, to: str
) -> dict[str, Callable[[], AbstractContextManager[Target]]]:
    (bare,) = take_ports(1)
    return {
        OURS: lambda: targets.ours(workspace, settings, to),
        LITELLM: lambda: targets.litellm(workspace, to, _say),
        PORTKEY: lambda: targets.portkey(workspace, to, _say),
        BARE: lambda: workspace.target(BARE, targets.bare(bare, to), bare),
    }


def _say(message: str) -> None:
    print(f"gateway: {message}", flush=True)


def _ratios(rounds: Rounds, names: list[str]) -> list[Result]:
    return [
        Result(
            f"{_kind(case)}, {case.connections} at once",
            "requests/s",
            median(rounds, OURS, case, lambda run: run.rate),
            median(rounds, peer, case, lambda run: run.rate),
            ratio(rounds, OURS, peer, case),
            peer,
            len(rounds),
            MIN_RATIOS.get(case, {}).get(peer),
        )
        for case in (*WHOLE, *STREAMED, *LONG)
        for peer in AIMS
        if peer in names
    ]


def _kind(case: Case) -> str:
    if case.kilobytes:
        return f"answers to {case.kilobytes} KB"
    return "streamed answers" if case.stream else "whole answers"


def _figures(rounds: Rounds, names: list[str]) -> list[Measured]:
    single, many = WHOLE[0], WHOLE[1]
    computed = median(rounds, OURS, many, lambda run: run.computed)
    root = median(rounds, OURS, many, lambda run: run.root)
    loads = {name: max(median(rounds, name, case, lambda run: run.busy) for case in WHOLE) for name in names}
    busiest = max((name for name in names if name != DIRECT), key=lambda name: loads[name])
    return [
        Measured("ratchet adds to an answer, one connection, p50", "ms", added(rounds, OURS, single, 50), MAX_ADDED_MS),
        Measured("ratchet adds to the first token at one connection, p50", "ms", added(rounds, OURS, STREAMED[0], 50)),
        Measured("ratchet's CPU per request: the process that answers", "µs", root),
        Measured("ratchet's CPU per request: its shipper", "µs", computed - root),
        Measured("the load generator's own limit, 64 connections, direct", "requests/s",
                 median(rounds, DIRECT, WHOLE[2], lambda run: run.rate)),
        Measured(f"the load generator's core, at its busiest target ({busiest})", "share busy", loads[busiest]),
    ]  # fmt: skip


def _plot(rounds: Rounds, names: list[str]) -> None:
    """Plot requests/s by connections and what each adds at one connection, as a PNG beside the tables."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name in names:
        rates = [median(rounds, name, case, lambda run: run.rate) for case in WHOLE]
        left.plot([case.connections for case in WHOLE], rates, marker="o", label=name)
    left.set(xscale="log", yscale="log", xlabel="connections", ylabel="requests/s", title="whole answers")
    left.set_xticks([case.connections for case in WHOLE], [str(case.connections) for case in WHOLE])
    left.legend()
    proxies = [name for name in names if name != DIRECT]
    right.barh(proxies, [added(rounds, name, WHOLE[0], 50) for name in proxies])
    right.axvline(MAX_ADDED_MS, linestyle="--", color="grey")
    right.set(xscale="log", xlabel="ms added at one connection, p50", title=f"the aim: {MAX_ADDED_MS} ms")
    figure.tight_layout()
    figure.savefig(RESULTS / "gateway.png", dpi=120)


if __name__ == "__main__":
    main()
