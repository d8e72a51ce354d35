"""What a person may tell a task's rollout: pause, resume, promote, rollback. Each is a move of the history."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from schemas.base import utc_now
from schemas.rollouts import Stage
from services.deployer.clients import FlagAdmin
from services.deployer.domain import decide
from services.deployer.flags import newest_entry, read_flags
from services.deployer.rollout import Rollout
from services.deployer.storage.rollouts import RolloutStore
from services.deployer.transitions import RolloutTransitions
from services.deployer.wakes import Wakes
from shared.errors import RatchetError


class CommandRefused(RatchetError):
    """The task's rollout is in no state for the command. The way out says what would be."""


class OperatorCommands:
    """The commands. Each takes the task, the person's name and their reason, and returns the rollout after it.

    They raise CommandRefused, and DependencyUnavailable while the database, Unleash or vLLM is away; then a command
    that was stored is finished later, like any other change.
    """

    def __init__(
        self,
        rollouts: RolloutStore,
        admin: FlagAdmin,
        transitions: RolloutTransitions,
        wakes: Wakes,
        end_outdated: Callable[[str], Awaitable[None]],
        wait_for_tasks: Callable[[], Awaitable[None]],
    ) -> None:
        self._rollouts = rollouts
        self._admin = admin
        self._transitions = transitions
        self._wakes = wakes
        self._end_outdated = end_outdated
        self._wait_for_tasks = wait_for_tasks

    async def pause(self, task: str, by: str, reason: str) -> Rollout:
        """Make no move to more users until somebody resumes, not even one that is decided and waits to be made.

        Guards, harm and the expiry go on, and labels count.
        """
        async with self._locked(task):
            rollout = await self._active(task)
            if rollout.paused:
                raise CommandRefused(f"{rollout.candidate} is paused already: {rollout.paused}")
            evidence = await self._transitions.evidence(rollout)
            return await self._change(rollout.with_pause(reason, evidence, utc_now(), by))

    async def resume(self, task: str, by: str, reason: str) -> Rollout:
        """Let a paused candidate go on; the canary and shadow flags are set again as its stage wants them.

        What serves everybody else is not touched: with primary or rollback as a hand left them it is refused, and while
        any of the flags is archived or deleted. It is a word of its moment: while a replica is away nothing is stored.
        """
        await self._wait_for_tasks()
        async with self._locked(task):
            rollout = await self._candidate(task)
            if not rollout.paused:
                raise CommandRefused(f"{rollout.candidate} is not paused")
            entry = await newest_entry(self._admin)  # Before the flags: a hand in between is of after the word.
            flags = await read_flags(self._admin, task)
            if flags.gone:
                way_out = f"Revive it in Unleash, or end the candidate: ratchet rollout rollback {task}"
                raise CommandRefused("; ".join(flags.gone.values()), way_out)
            differences = flags.differences(rollout)
            if serving := [differences[flag] for flag in ("primary", "rollback") if flag in differences]:
                way_out = f"Put ratchet.{task}.primary and ratchet.{task}.rollback back in Unleash first."
                raise CommandRefused(f"{'; '.join(serving)}: no pair would count", way_out)
            await self._transitions.refusal(rollout)  # Whatever it says is acted on as flags move.
            evidence = await self._transitions.evidence(rollout)
            resumed = await self._change(rollout.with_resumption(reason, evidence, utc_now(), by, entry))
            await self._transitions.advance(task)
            return await self._rollouts.get(resumed.rollout_id) or resumed

    async def promote(self, task: str, by: str, reason: str) -> Rollout:
        """Approve the last step of a candidate that is proven, where the task wants a person's approval.

        Nobody promotes what is not proven: then the evidence so far is the refusal; nor what a hand in Unleash holds.
        """
        await self._wait_for_tasks()
        async with self._locked(task):
            rollout = await self._transitions.paused_if_touched(await self._candidate(task))
            if rollout.paused:
                way_out = f"Let it go on first: ratchet rollout resume {task}"
                raise CommandRefused(f"{rollout.candidate} is paused: {rollout.paused}", way_out)
            ledger, age = await self._transitions.ledger(rollout), utc_now() - rollout.stage_since
            decision = decide(rollout.stage, ledger, rollout.alpha, rollout.spec.rollout, age)
            if decision is None or decision.stage is not Stage.PROMOTED:
                wealth = ledger.counted(rollout.alpha).wealth
                found = decision.reason if decision else f"wealth {wealth:.1f} of {1 / rollout.alpha:.0f}"
                raise CommandRefused(
                    f"{rollout.candidate} is in {rollout.stage.value} and not proven yet: {found}",
                    "Wait for more labels. If primary is set by hand in Unleash instead, nothing guards "
                    f"{rollout.candidate} any more, and this candidate and each later one is paused until "
                    f"ratchet.{task}.primary is put back and somebody resumes it.",
                )
            evidence = ledger.evidence(rollout.alpha, decision.margin)
            approved = f"approved: {reason}; {decision.reason}"
            return await self._change(rollout.with_promotion(approved, evidence, utc_now(), by))

    async def rollback(self, task: str, by: str, reason: str) -> Rollout:
        """End the candidate that is compared, whatever its next move waits for; without one, take back the adapter that
        was promoted last.
        """
        async with self._locked(task):
            last = await self._rollouts.last_entered(task)
            if last is not None and last.standing.active:
                await self._transitions.end(task, Stage.REJECTED, f"ended: {reason}", by)
                return await self._rollouts.get(last.rollout_id) or last
            promoted = await self._transitions.standing_promotion(task)
            if promoted is None or promoted.stage is not Stage.PROMOTED:
                raise CommandRefused(
                    f"{task} has neither a candidate nor a promoted adapter to take back",
                    f"In an emergency turn ratchet.{task}.primary off in Unleash, and the base model serves; or put "
                    "another adapter's name in its payload.",
                )
            back = promoted.taken_back(f"rolled back: {reason}", promoted.evidence, utc_now(), by)
            return await self._change(back)

    @asynccontextmanager
    async def _locked(self, task: str) -> AsyncIterator[None]:
        """Hold the task's lock; then have it ticked, for what the command leaves to be done."""
        try:
            async with self._rollouts.locked(task):
                yield
        finally:
            self._wakes.note(task)

    async def _candidate(self, task: str) -> Rollout:
        """Return the candidate that may have more users by a person's word: not one whose task has changed."""
        await self._end_outdated(task)
        await self._transitions.settle(task)
        return await self._active(task)

    async def _active(self, task: str) -> Rollout:
        if (rollout := await self._transitions.active(task)) is None:
            way_out = f"What became of its last one: ratchet rollout status {task}"
            raise CommandRefused(f"{task} has no candidate in shadow or canary", way_out)
        return rollout

    async def _change(self, changed: Rollout) -> Rollout:
        await self._rollouts.save(changed)
        await self._transitions.settle(changed.task)
        return await self._rollouts.get(changed.rollout_id) or changed
