"""The cost of a server and a client to a gateway: the bare pass-through on each server and with each client.

uvicorn (uvloop, httptools) against granian (its ASGI interface, uvloop), aiohttp against httpx, one worker each. The
gateway runs on uvicorn; its client is its own, which `python -m tests.benchmarks.http_clients` compares with these two.
"""

from __future__ import annotations

import contextlib

from deploy.devstack.config import StackConfig
from deploy.devstack.ports import take_ports
from tests.benchmarks import targets
from tests.benchmarks.gateway import ROUNDS, SECONDS
from tests.benchmarks.load import Generator
from tests.benchmarks.rounds import DIRECT, GRID, Case, grid, median, ratio, visit
from tests.benchmarks.table import Grid, Result, report
from tests.benchmarks.targets import Workspace
from tests.conftest import ROOT

CHOSEN = ("uvicorn", "aiohttp")
OTHERS = (("granian", "aiohttp"), ("uvicorn", "httpx"), ("granian", "httpx"))
CASES = [Case(1), Case(16), Case(64), Case(16, stream=True)]


def main() -> None:
    """Run the benchmark and write its report."""
    home = ROOT / ".ratchet" / "bench" / "servers"
    home.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        env = targets.plain_environment()
        workspace = Workspace(StackConfig.load(home, env), env)
        ports = take_ports(2 + len(OTHERS))
        direct = stack.enter_context(workspace.target(DIRECT, targets.upstream(ports[0]), ports[0]))
        to = direct.url.removesuffix("/v1/chat/completions")
        found = [direct]
        for (server, client), port in zip((CHOSEN, *OTHERS), ports[1:], strict=True):
            launch = targets.bare(port, to, server, client)
            found.append(stack.enter_context(workspace.target(f"{server}, {client}", launch, port)))
        rounds = visit(stack.enter_context(Generator()), found, CASES, ROUNDS, SECONDS, _say)
    chosen = ", ".join(CHOSEN)
    results = [
        Result(
            f"{chosen}: {'streamed' if case.stream else 'whole'} answers, {case.connections} connections", "requests/s",
            median(rounds, chosen, case, lambda run: run.rate), median(rounds, other, case, lambda run: run.rate),
            ratio(rounds, chosen, other, case), other, ROUNDS,
        )
        for case in CASES
        for other in (", ".join(pair) for pair in OTHERS)
    ]  # fmt: skip
    names = [target.name for target in found]
    grids = [
        Grid("whole answers", GRID, grid(rounds, names, CASES[:-1])),
        Grid("streamed: time to the first token", GRID, grid(rounds, names, CASES[-1:])),
    ]
    report(results, "servers", grids=grids)


def _say(message: str) -> None:
    print(f"servers: {message}", flush=True)


if __name__ == "__main__":
    main()
