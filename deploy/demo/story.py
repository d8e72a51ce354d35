"""One turn of the wheel, in order. Each step is a function of its own; this file only says what follows what."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import httpx

from deploy.demo.clients import TIMEOUT, Console, Gateway, Scheduler
from deploy.demo.data.csv_file import Data, read_rows
from deploy.demo.data.split import Parts, split
from deploy.demo.data.task_file import apply, free_name, name_for, shipped
from deploy.demo.pairs import PairLedger
from deploy.demo.report import report as reports
from deploy.demo.reviewers import Habits, Reviewers, shuffled_truth
from deploy.demo.settings import LoopSettings
from deploy.demo.state import Options, Result, Turn
from deploy.demo.steps.cycle import StepBroke, poll
from deploy.demo.steps.learning import Stopped, await_dataset, await_evaluation, await_failures, await_training
from deploy.demo.steps.live_test import prove_live
from deploy.demo.steps.pair_watcher import watch_pairs
from deploy.demo.steps.rollback import Flags, prove_rollback
from deploy.demo.steps.traffic import ask_held_out, await_corrections, send_traffic
from deploy.demo.terminal import Show
from shared.errors import RatchetError

READY_SECONDS = 120.0


def read_parts(options: Options) -> tuple[Data, Parts]:
    """The rows of the turn, split. Raises DataError before anything is started."""
    if options.data is None:
        data = read_rows(shipped()[1], "text", "label")
    else:
        data = read_rows(options.data, options.text, options.label, options.labels)
    return data, split(data, options.seed, options.corrections)


async def play(options: Options, settings: LoopSettings, data: Data, parts: Parts, show: Show) -> Result:
    """Play one turn on the running stack and write its report, also of a turn that broke.

    Raises RatchetError with the way out where a step breaks or is late; a candidate that is stopped by a gate or by
    the test is a result.
    """
    started = time.monotonic()
    async with _wired(options, settings, data, parts, show) as turn:
        try:
            await _play(turn)
        except RatchetError as error:
            turn.result.stopped_by, turn.result.evidence = "a step that broke", error.reason
            raise
        finally:
            turn.result.seconds = time.monotonic() - started + show.seconds.get("set-up", 0.0)
            report = _report(turn)
            reports.write(report, options.report)
        reports.show(report, show, options.report)
        return turn.result


async def _play(turn: Turn) -> None:
    try:
        await _steps(turn)
    except Stopped as stopped:
        turn.result.stopped_by, turn.result.evidence = stopped.by, stopped.evidence
        turn.show.say(f"[bold yellow]Stopped[/] by {stopped.by}: {stopped.evidence}")
    turn.result.after = await ask_held_out(turn, "after")
    if turn.options.prove_rollback and turn.result.promoted:
        await _rollback(turn)


def _report(turn: Turn) -> reports.Report:
    return reports.Report(
        result=turn.result,
        tally=turn.reviewers.tally,
        history=turn.ledger.history,
        standing=turn.ledger.standing(),
        seconds=turn.show.seconds,
        addresses=_addresses(turn.settings, turn),
        canary_wealth=turn.spec.rollout.canary_wealth,
    )


async def _steps(turn: Turn) -> None:
    turn.result.before = await ask_held_out(turn, "before")
    answers = await send_traffic(turn)
    await await_corrections(turn, answers)
    turn.result.cycle_id = await turn.scheduler.start_cycle()
    try:
        await await_failures(turn)
        await await_dataset(turn)
    except StepBroke as broke:
        if not turn.options.shuffle_labels or broke.step != "dataset":
            raise
        raise Stopped("gate of the dataset", broke.reason) from broke
    await await_training(turn)
    await await_evaluation(turn)
    await prove_live(turn)


@contextlib.asynccontextmanager
async def _wired(options: Options, settings: LoopSettings, data: Data, parts: Parts, show: Show) -> AsyncIterator[Turn]:
    """The turn with its task known to the gateway, its clients and its people at work."""
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits) as http:
        wanted = options.task_name or ("support-desk" if options.data is None else name_for(options.data))
        folder = settings.home / "tasks"
        name = free_name(wanted, {path.stem for path in folder.glob("*.yaml")} | await _played(http, settings, wanted))
        spec = apply(folder, name, None if options.data is None else data.labels)
        taught = shuffled_truth(parts.traffic, options.seed) if options.shuffle_labels else None
        console = Console(http, settings.console_url, name)
        habits = Habits(options.wrong_share, options.disagree_share, options.seed)
        turn = Turn(
            options, settings, show, spec, parts,
            gateway=Gateway(http, settings.gateway_url, name),
            console=console,
            scheduler=Scheduler(http, settings.scheduler_url, name),
            reviewers=Reviewers(console, spec.labels, habits, taught),
            ledger=PairLedger(),
            flags=Flags(http, settings, name),
            result=Result(task=name, shuffled=options.shuffle_labels),
        )  # fmt: skip
        await _task_known(turn, data)
        watching = asyncio.create_task(watch_pairs(settings, name, turn.ledger))
        turn.background.append(asyncio.create_task(turn.reviewers.work()))
        try:
            yield turn
        finally:
            for task in (watching, *turn.background):
                task.cancel()
            await asyncio.gather(watching, *turn.background, return_exceptions=True)


async def _played(http: httpx.AsyncClient, settings: LoopSettings, name: str) -> set[str]:
    """`name` if the console remembers a cycle of it: the task's file may be gone, but not what was learned."""
    return {name} if await Console(http, settings.console_url, name).cycles() else set()


async def _task_known(turn: Turn, data: Data) -> None:
    with turn.show.step("task", f"Task {turn.spec.name}: {len(turn.spec.labels)} labels on {turn.spec.base_model}"):

        async def known() -> bool:
            return turn.spec.name in await turn.gateway.tasks()

        late = turn.late(f"the gateway does not know the task {turn.spec.name}", READY_SECONDS)
        await poll(known, turn.limit(READY_SECONDS), late)
    parts = turn.parts
    turn.show.say(
        f"{len(parts.traffic)} rows for corrections, {len(parts.live)} live, {len(parts.held_out)} held out; "
        "near-copies never in two of them"
    )
    for reason, count in data.dropped.items():
        turn.show.say(f"[dim]left out: {count} rows, {reason}[/]")


async def _rollback(turn: Turn) -> None:
    """Going back takes seconds: rollback on and off, primary off and on, each timed at the gateway."""
    row = min(turn.parts.held_out, key=lambda row: len(row.text))
    with turn.show.step("rollback", "Unleash: rollback on and off, primary off and on"):
        turn.result.switched = await prove_rollback(turn.flags, lambda: turn.gateway.ask(row, "operator"))
    for switched in turn.result.switched:
        turn.show.say(
            f"{switched.move}: {switched.variant} ({switched.adapter or 'base model'}) after {switched.seconds:.1f} s"
            + ("" if switched.in_time else " [red]over 3 s[/]")
        )


def _addresses(settings: LoopSettings, turn: Turn) -> dict[str, str]:
    cycle = f"/cycles/{turn.result.cycle_id}" if turn.result.cycle_id else ""
    return {
        "console": settings.console_url + cycle,
        "gateway": f"{settings.gateway_url}/v1 (model: {turn.spec.name})",
        "Unleash": f"{settings.unleash} (user admin, password in {settings.home / 'secrets' / 'stack.json'})",
    }
