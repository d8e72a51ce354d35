"""`python -m tests.chaos rollouts`: one run, with progress. Exit code 1 if anything was not as the evidence says."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tests.chaos.rollouts import report
from tests.chaos.rollouts.run import SHORT, Options, run_rollouts
from tests.chaos.signals import cancel_on_signals
from tests.chaos.system import ROOT, StartError
from tests.conftest import shared_home

RESULTS = Path(__file__).parents[1] / "results"


def main(
    rollouts: Annotated[int, typer.Option(help="How many, at least.")] = 100,
    tasks: Annotated[int, typer.Option(help="Tasks, each with a candidate of its own at a time.")] = 10,
    kills: Annotated[int, typer.Option(help="Kills of each part.")] = 20,
    minutes: Annotated[float, typer.Option(help="Within which these are played, on a fast machine.")] = 15.0,
    patience: Annotated[float, typer.Option(help="Minutes after which what was decided so far is checked.")] = 60.0,
    vllm: Annotated[int, typer.Option(help="So many of the tasks on a real vLLM, the others on a stand-in.")] = 0,
    rate: Annotated[float, typer.Option(help="Requests a second of each task; fewer where the machine is slow.")] = 6.0,
    vllm_rate: Annotated[float, typer.Option(help="The same of each task on vLLM.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Seed of candidates, kills and traffic.")] = 4,
    out: Annotated[Path | None, typer.Option(help="JSON; default: tests/chaos/results/.")] = None,
    short: Annotated[bool, typer.Option(help="A handful of rollouts, a kill of each part.")] = False,
    keep: Annotated[bool, typer.Option(help="Do not delete the folder with the logs.")] = False,
) -> None:
    """Kill what decides about rollouts, and check every decision against the evidence that there was."""
    options = Options(rollouts, tasks, kills, minutes * 60, rate, patience * 60, seed, vllm, vllm_rate)
    if short:
        options = replace(SHORT, seed=seed)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # Its clients say at length that a broker was killed.
    console = Console(markup=False, emoji=False, highlight=False)
    home = shared_home() / "chaos" / f"rollouts-{os.getpid()}"
    try:
        outcome = asyncio.run(_interruptible(home, options, console, keep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print(f"interrupted; all processes are stopped. Logs: {home / 'logs'}")
        raise typer.Exit(130) from None
    except StartError as error:
        console.print(f"{error}\nLogs: {home / 'logs'}", style="red")
        raise typer.Exit(2) from error
    report.show(outcome, console)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    name = f"{stamp}-rollouts-{outcome.system['broker']}{'-short' if short else ''}.json"
    path = out or RESULTS / name
    outcome.write(path, (home, ROOT))
    console.print(f"written to {path} and {path.with_suffix('.md').name}")
    raise typer.Exit(0 if outcome.passed else 1)


async def _interruptible(home: Path, options: Options, console: Console, keep: bool) -> report.Outcome:
    """Run, and clean up on Ctrl-C and SIGTERM."""
    cancel_on_signals()
    return await run_rollouts(home, options, _teller(console), keep=keep)


def _teller(console: Console) -> Callable[[str], None]:
    began = time.monotonic()
    return lambda words: console.print(f"{time.monotonic() - began:4.0f} s {words}", soft_wrap=True)
