"""`python -m tests.chaos`: one run, with progress. Exit code 1 if anything was lost, doubled, changed or leaked.

`python -m tests.chaos rollouts`: the same for what decides about candidates (`rollouts/`).
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from tests.chaos import report
from tests.chaos.faults import KINDS
from tests.chaos.rollouts.__main__ import main as run_rollouts
from tests.chaos.run import SHORT, Options, Progress, run_chaos
from tests.chaos.signals import cancel_on_signals
from tests.chaos.system import ROOT, StartError
from tests.conftest import shared_home

RESULTS = Path(__file__).parent / "results"
_SECONDS_BETWEEN_LINES = 10.0


def main(
    context: typer.Context,
    minutes: Annotated[float, typer.Option(help="How long load and faults last, on a fast machine.")] = 14.0,
    events: Annotated[int, typer.Option(help="Accepted predictions.")] = 200_000,
    faults: Annotated[int, typer.Option(help="Faults of each kind (zombies: a fifth).")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of load and schedule.")] = 4,
    out: Annotated[Path | None, typer.Option(help="JSON; default: tests/chaos/results/.")] = None,
    short: Annotated[bool, typer.Option(help="The short run of `make test`; the numbers above are not used.")] = False,
    without: Annotated[str, typer.Option(help=f"Kinds not to play, comma-separated: {', '.join(KINDS)}.")] = "",
    keep: Annotated[bool, typer.Option(help="Do not delete the folder with logs, ledger and lake.")] = False,
) -> None:
    """Play faults against real processes, and report what was accepted, stored, lost, doubled, changed and leaked."""
    if context.invoked_subcommand is not None:
        return
    excluded = frozenset(filter(None, without.split(",")))
    if unknown := excluded - set(KINDS):
        raise typer.BadParameter(f"no such kind: {', '.join(unknown)}; kinds: {', '.join(KINDS)}")
    options = Options(minutes * 60, events, faults, seed, without=excluded)
    if short:
        options = replace(SHORT, seed=seed, without=excluded)
    console = Console(markup=False, emoji=False, highlight=False)
    home = shared_home() / "chaos" / str(os.getpid())
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
    path = out or RESULTS / f"{stamp}-{outcome.system['broker']}{'-short' if short else ''}.json"
    outcome.write(path, (home, ROOT))
    console.print(f"written to {path} and {path.with_suffix('.md').name}")
    if not outcome.passed or keep:
        console.print(f"logs, ledger and lake: {home}")
    raise typer.Exit(0 if outcome.passed else 1)


async def _interruptible(home: Path, options: Options, console: Console, keep: bool) -> report.Outcome:
    """Run, and clean up on Ctrl-C and SIGTERM."""
    cancel_on_signals()
    with _Screen(console) as screen:
        return await run_chaos(home, options, screen.show, keep=keep)


class _Screen:
    """Shows progress: one live line in a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._started_at = time.monotonic()
        self._last, self._stage = 0.0, ""

    def __enter__(self) -> _Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        text = self._text(progress)
        if self._live:
            self._live.update(Text(text))
            return
        stage = progress.stage.partition(":")[0]
        if time.monotonic() - self._last > _SECONDS_BETWEEN_LINES or stage != self._stage:
            self._last, self._stage = time.monotonic(), stage
            self._console.print(text, soft_wrap=True)

    def _text(self, progress: Progress) -> str:
        elapsed = time.monotonic() - self._started_at
        share = min(1.0, progress.accepted / progress.events)
        bar = "█" * round(share * 20) + "░" * (20 - round(share * 20))
        words = [f"{elapsed:4.0f} s {bar} {progress.accepted:,} accepted, {progress.refused:,} refused"]
        words.append(f"{progress.unknown:,} open, spools {progress.spool_bytes / 1e6:.1f} MB")
        if progress.faults is not None:
            words.append(", ".join(f"{kind} {progress.faults[kind]}" for kind in KINDS))
        if progress.now:
            words.append("now: " + ", ".join(progress.now.values()))
        return " | ".join([*words, progress.stage])


app = typer.Typer(add_completion=False)
app.callback(invoke_without_command=True)(main)
app.command("rollouts")(run_rollouts)

if __name__ == "__main__":
    app()
