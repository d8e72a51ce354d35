"""The whole loop, from a production request to a promoted adapter, from top to bottom. `steps/` has its parts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import httpx

from deploy.demo.clients import TIMEOUT, ConsoleClient
from deploy.demo.data.rows import LoopData, read_lines, read_rows
from deploy.demo.data.split import Split, split_rows, split_unlabelled
from deploy.demo.data.task_file import answer_spec, apply_loop_task, data_file, free_name, name_for
from deploy.demo.errors import CandidateStopped
from deploy.demo.pairs import PairLedger
from deploy.demo.report import report as reports
from deploy.demo.report.blocks import Report
from deploy.demo.report.result import LoopResult
from deploy.demo.reviewers import Reviewers, faulty_labels
from deploy.demo.settings import LoopOptions, LoopSettings
from deploy.demo.stack import bring_up, take_down
from deploy.demo.state import Clients, LoopContext, Setup
from deploy.demo.steps.cycle import poll
from deploy.demo.steps.learning import learn
from deploy.demo.steps.live_test import prove_live, watch_pairs
from deploy.demo.steps.traffic import ask_held_out, await_corrections, send_traffic
from deploy.demo.terminal import Terminal
from schemas.tasks import TaskKind
from shared.addresses import without_credentials
from shared.answers import answer_form
from shared.errors import RatchetError

READY_SECONDS = 120.0


def run(options: LoopOptions, terminal: Terminal, *, stop_stack: bool = False) -> LoopResult:
    """Read the data, start what is not running, and play the loop on it. `stop_stack`: stop the stack afterwards.

    Raises ConfigurationError for a file, or a folder for the report, that cannot be used, before anything is started.
    """
    data, rows = read_data(options)
    reports.make_folder(options.report)
    with terminal.step("set-up", "Broker, database, Unleash, vLLM and the ten services") as progress:
        settings = bring_up(lambda message: progress.update(message=message))
    try:
        return asyncio.run(play(options, settings, data, rows, terminal))
    finally:
        if stop_stack:
            take_down(lambda message: terminal.say((message, "dim")))


def read_data(options: LoopOptions) -> tuple[LoopData, Split]:
    """Read the rows and split them. Raises DataError before anything is started."""
    source, path = options.data, data_file(options.data)
    if source.kind is not TaskKind.CLASSIFICATION:
        spec = answer_spec(source)
        data = read_lines(path, spec)
        return data, split_unlabelled(data, options.seed, source.max_corrections, exact=answer_form(spec).is_exact)
    if source.path is None:
        data = read_rows(path, "text", "label")
    else:
        data = read_rows(path, source.text_column, source.label_column, source.max_labels)
    return data, split_rows(data, options.seed, source.max_corrections)


async def play(
    options: LoopOptions, settings: LoopSettings, data: LoopData, rows: Split, terminal: Terminal
) -> LoopResult:
    """Play the loop on the running stack and write its report, also if a step fails.

    Raises RatchetError with the way out if a step fails or takes too long. A candidate that is stopped by a gate or
    by the live test is a result.
    """
    started = time.monotonic()
    async with prepared(options, settings, data, rows, terminal) as loop:
        result = loop.result
        try:
            await _measure_and_improve(loop)
        except RatchetError as error:
            result.stopped_by, result.evidence = "a step that failed", error.reason
            raise
        finally:
            result.seconds = time.monotonic() - started + terminal.seconds.get("set-up", 0.0)
            report = _report(loop)
            reports.write(report, options.report)
        reports.show(report, terminal, options.report)
        return result


async def _measure_and_improve(loop: LoopContext) -> None:
    result = loop.result
    result.before = await ask_held_out(loop, "before")
    try:
        await _improve(loop)
    except CandidateStopped as stopped:
        result.stopped_by, result.evidence = stopped.by, stopped.evidence
        loop.terminal.say(("Stopped", "bold yellow"), f" by {stopped.by}: {stopped.evidence}")
    if result.cycle.training is not None:  # Else nothing could have changed.
        result.after = await ask_held_out(loop, "after")


async def _improve(loop: LoopContext) -> None:
    answers = await send_traffic(loop)
    await await_corrections(loop, answers)
    await learn(loop)
    await prove_live(loop)


def _report(loop: LoopContext) -> Report:
    settings, task, cycle_id = loop.setup.settings, loop.setup.task, loop.result.cycle.cycle_id
    unleash, credentials = without_credentials(settings.unleash), settings.home / "secrets" / "stack.json"
    addresses = {
        "console": settings.console_url + (f"/cycles/{cycle_id}" if cycle_id else ""),
        "gateway": f"{settings.gateway_url}/v1 (model: {task.name})",
        "Unleash": f"{unleash} (user admin, password in {credentials})",
    }
    canary_wealth = task.rollout.canary_wealth
    return Report(loop.result, loop.reviewers.counts, loop.pairs, loop.terminal.seconds, addresses, canary_wealth)


@contextlib.asynccontextmanager
async def prepared(
    options: LoopOptions, settings: LoopSettings, data: LoopData, rows: Split, terminal: Terminal
) -> AsyncIterator[LoopContext]:
    """The loop with its task served by the gateway, its clients, and its reviewers at work."""
    folder = settings.home / "tasks"
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=httpx.Limits(max_connections=32)) as http:
        name = options.task_name or name_for(options.data)
        used = {file.stem for file in folder.glob("*.yaml")}
        if await ConsoleClient(http, settings.console_url, name).cycles():
            used.add(name)  # Its file may be deleted, but its predictions and corrections are not.
        name = free_name(name, used)
        task = apply_loop_task(folder, name, options.data, data, len(rows.traffic), options.fault)
        clients = Clients.of(http, settings, task)
        faulty = faulty_labels(options.fault, rows.traffic, options.seed)
        choices = task.labels or [row.label for row in rows.traffic]
        spec = None if task.labels else task
        reviewers = Reviewers(clients.console, choices, options.mistakes, faulty, spec)
        result = LoopResult(task=name, fault=options.fault)
        loop = LoopContext(Setup(options, settings, task, rows), clients, reviewers, PairLedger(), result, terminal)
        await _await_task(loop, data)
        loop.start_background(watch_pairs(clients.deployer, loop.pairs))
        try:
            yield loop
        finally:
            await loop.stop_background()


async def _await_task(loop: LoopContext, data: LoopData) -> None:
    """Wait until the gateway serves the task, and show how its rows are split."""
    task, rows, terminal = loop.setup.task, loop.setup.rows, loop.terminal
    with terminal.step("task", f"Task {task.name}: {answer_form(task).summary} on {task.base_model}"):

        async def served() -> bool:
            return task.name in await loop.clients.gateway.tasks()

        timeout = loop.timeout(f"the gateway does not serve the task {task.name}", READY_SECONDS)
        await poll(served, loop.limit(READY_SECONDS), timeout)
    terminal.say(
        f"{len(rows.traffic)} rows for corrections, {len(rows.live)} live, {len(rows.held_out)} held out; "
        "near-duplicates never in two of them"
    )
    for reason, count in data.dropped.items():
        terminal.say((f"left out: {count} rows, {reason}", "dim"))
