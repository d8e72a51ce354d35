"""A further turn on the same task, after a restart of the whole stack: the candidate is compared with an adapter.

The broker, the database and the flags must bring everything back: what serves, and whom the next candidate is to beat.
The first turn's candidate beats the base model, so only a further one shows that.
"""

from __future__ import annotations

import asyncio
import time

from deploy.demo.clients import GatewayAnswer
from deploy.demo.data.task_file import change_task
from deploy.demo.errors import CandidateStopped
from deploy.demo.report.result import NextTurn
from deploy.demo.stack import restart
from deploy.demo.state import LoopContext
from deploy.demo.steps.cycle import poll
from deploy.demo.steps.learning import learn
from deploy.demo.steps.live_test import prove_live
from deploy.demo.steps.pair_watcher import watch_pairs
from deploy.demo.steps.traffic import ask_held_out, await_corrections, send_traffic
from shared.errors import RatchetError

SERVED_SECONDS = 60.0
FURTHER_TURN = {"dataset": {"min_new_examples": 0}}
"""What a further turn changes of its task, so that it is played to its end: people are asked little about the answers
of an adapter that is sure of them, and rightly. The revision stays."""


async def play_next_turn(loop: LoopContext, number: int) -> NextTurn:
    """Restart the stack, wait until it serves as before, and turn the wheel once more. `loop`: the turn before.

    Raises RatchetError with the way out where a step fails or the promoted adapter does not come back. A candidate that
    is stopped is a result.
    """
    started, serves = time.monotonic(), await serving_adapter(loop)
    await loop.stop_background()
    loop.terminal.say((f"Turn {number}", "bold cyan"), f": the stack is restarted while {serves} serves")
    with loop.terminal.step(f"restart {number}", "Everything stops and starts again") as progress:
        await asyncio.to_thread(restart, lambda message: progress.update(message=message))
        await await_serving(loop, serves)
    setup = loop.setup
    change_task(setup.settings.home / "tasks", setup.task.name, FURTHER_TURN)
    turn = loop.next_turn(number)
    turn.start_background(watch_pairs(setup.settings, setup.task.name, turn.pairs))
    result = turn.result
    try:
        await await_corrections(turn, await send_traffic(turn), least=0)
        await learn(turn)
        await prove_live(turn)
        result.after = await ask_held_out(turn, f"after turn {number}")
    except CandidateStopped as stopped:
        result.stopped_by, result.evidence = stopped.by, stopped.evidence
        turn.terminal.say(("Stopped", "bold yellow"), f" by {stopped.by}: {stopped.evidence}")
    finally:
        await turn.stop_background()
    result.seconds = time.monotonic() - started
    played = NextTurn(number, serves, result, turn.terminal.seconds)
    turn.terminal.say((played.verdict, "bold green" if played.as_expected else "bold red"))
    return played


async def serving_adapter(loop: LoopContext) -> str:
    """Return the adapter that serves everyone. Raises RatchetError if it is none."""
    answer = await _ask(loop)
    if not answer.ok or answer.variant != "primary":
        raise RatchetError(
            f"no adapter serves {loop.setup.task.name}: {answer.error or answer.variant + ' answered'}",
            "A further turn needs the promoted adapter of the one before. Is a flag turned off in Unleash?",
        )
    return answer.adapter


async def await_serving(loop: LoopContext, adapter: str) -> None:
    """Wait until this adapter serves everyone again, after a restart."""

    async def serves_again() -> bool:
        answer = await _ask(loop)
        return answer.ok and (answer.variant, answer.adapter) == ("primary", adapter)

    timeout = loop.timeout(f"{adapter} does not serve again", SERVED_SECONDS)
    await poll(serves_again, loop.limit(SERVED_SECONDS), timeout)


async def _ask(loop: LoopContext) -> GatewayAnswer:
    return await loop.clients.gateway.ask(loop.setup.rows.traffic[0], "turn")
