"""Moving a rollout: store the change, move the flags, publish the event, in this order.

A crash between any two steps is harmless: the change is stored as unsettled first, and `settle`, which runs before
every decision and at every tick, repeats the flags (idempotent) and the event (same id) of what is not settled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from schemas.base import Messages, utc_now
from schemas.labels import LabelRequested, Purpose
from schemas.rollouts import Stage
from services.deployer import flags
from services.deployer.clients import Adapters, ArtifactMissing, FlagAdmin
from services.deployer.domain import Decision, decide
from services.deployer.rollout import Rollout, Serving, serving_after
from services.deployer.storage import DrawnTicket, Storage
from shared.errors import InvalidMessage
from shared.identity import event_id
from shared.kafka.consumers import Publishes

_PRIORITY = 2.0
"""Above every low-confidence question (at most 1): a candidate waits for these answers."""
_ARTIFACT_PATIENCE = timedelta(minutes=15)
"""An adapter is in the store before anyone hears of it. One that is not there for so long was deleted: waiting for it
for ever would hold up all candidates behind it."""

logger = logging.getLogger(__name__)


class Moves:
    """The rollouts of all tasks. Call its methods with the task locked: `async with storage.locked(task)`."""

    def __init__(
        self,
        storage: Storage,
        admin: FlagAdmin,
        adapters: Adapters,
        publisher: Publishes,
        most_open: int,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._storage = storage
        self._admin = admin
        self._adapters = adapters
        self._publisher = publisher
        self._most_open = most_open
        self._now = now
        self._noted: dict[str, tuple[str, ...]] = {}
        self._waiting: dict[str, str] = {}

    async def settle(self, task: str) -> None:
        """Finish every change of the task whose flags or event may not be out."""
        for rollout in await self._storage.unsettled(task):
            current = rollout
            if rollout.moves_flags:
                refusal = await self._refusal(rollout, rollout.changed_at)
                if refusal:
                    current = rollout.refused(refusal, self._now())
                    await self._storage.store(current)
                await flags.apply(self._admin, current)
            await self._publisher.publish(current.event())
            await self._storage.settle(current)
            logger.info("%s: %s is %s: %s", task, current.candidate, current.stage.value, current.reason)

    async def serving(self, task: str, base_model: str) -> Serving:
        """Who serves the task now; for a task without any rollout yet, as its primary flag says."""
        if (last := await self._storage.last_entered(task)) is not None:
            return serving_after(last, base_model)
        state = await self._admin.read(flags.name(task, "primary"))
        payload = (state.payload or {}) if state is not None and state.enabled else {}
        return Serving(payload.get("adapter"), payload.get("previous"))

    async def begin(self, fresh: Rollout, evaluated_at: datetime) -> None:
        """Start a candidate's rollout, or note that the offline gates stopped it.

        One candidate at a time: a newer one that passed takes the place of an older one that is still on its way,
        which is rejected as superseded. One that failed, or that vLLM does not serve, leaves the older one running,
        whose state is published again because `rollouts.changed` keeps one value a task.
        """
        older = await self._active(fresh.task)
        if fresh.entered and (refusal := await self._refusal(fresh, evaluated_at)):
            fresh = fresh.never_served(refusal)
        if older is None:
            await self._storage.store(fresh)
        elif older.rollout_id != fresh.rollout_id and await self._storage.rollout(fresh.rollout_id) is None:
            evidence = (await self._storage.ledger(older.rollout_id)).evidence(older.alpha)
            if fresh.entered:
                reason = f"superseded: {fresh.candidate} passed the offline gates and takes its place"
                await self._storage.store(older.moved(Stage.REJECTED, reason, evidence, self._now()), fresh)
            else:
                reason = f"goes on in {older.stage.value}: the newer {fresh.candidate} did not enter"
                goes_on = older.moved(older.stage, reason, evidence, self._now(), moves_flags=False)
                await self._storage.store(fresh, goes_on)
        await self.settle(fresh.task)

    async def advance(self, task: str) -> None:
        """Decide about the task's candidate, if it has one, and act on it."""
        await self.settle(task)
        rollout = await self._active(task)
        if rollout is None:
            return
        ledger = await self._storage.ledger(rollout.rollout_id)
        decision = decide(rollout.stage, ledger, rollout.alpha, rollout.spec.rollout)
        if decision is None:
            await self._ask(rollout)
            return
        if await self._held(rollout, decision):
            return
        evidence = ledger.evidence(rollout.alpha)
        if decision.stage is Stage.PROMOTED:
            moved = rollout.promoted(decision.reason, evidence, self._now())
        else:
            moved = rollout.moved(decision.stage, decision.reason, evidence, self._now())
        await self._storage.store(moved)
        await self.advance(task)  # Settles it, and looks whether the evidence is already enough for the next stage.

    async def reject(self, task: str, reason: str) -> None:
        """End the task's candidate for a reason outside of the test."""
        await self.settle(task)
        if (rollout := await self._active(task)) is not None:
            evidence = (await self._storage.ledger(rollout.rollout_id)).evidence(rollout.alpha)
            await self._storage.store(rollout.moved(Stage.REJECTED, reason, evidence, self._now()))
            await self.settle(task)

    async def watch(self, task: str) -> None:
        """See what an operator did by hand: never undone; logged once, and a rollback is published."""
        last = await self._storage.last_entered(task)
        if last is None or not last.settled:
            return
        seen = await flags.observe(self._admin, task)
        differences = seen.differences(last)
        if differences != self._noted.get(task, ()):
            self._noted[task] = differences
            logger.warning("%s: flags turned by hand: %s", task, "; ".join(differences) or "none any more")
        if last.stage is Stage.PROMOTED and seen.rolled_back:
            reason = f"an operator turned rollback on: {last.previous or 'the base model'} serves again"
            back = last.moved(Stage.ROLLED_BACK, reason, last.evidence, self._now(), moves_flags=False)
            await self._storage.store(back.serving(last.previous, last.candidate))
        elif last.stage is Stage.ROLLED_BACK and not seen.rolled_back:
            reason = f"an operator turned rollback off: {last.candidate} serves again"
            again = last.moved(Stage.PROMOTED, reason, last.evidence, self._now(), moves_flags=False)
            await self._storage.store(again.serving(last.candidate, last.primary))
        await self.settle(task)

    async def _ask(self, rollout: Rollout) -> None:
        """Ask people about the next pairs that differ, a few at a time, through shadow and canary alike."""
        await self._storage.draw(rollout, self._most_open)
        for ticket in await self._storage.unpublished(rollout.rollout_id):
            if ticket.messages is not None:
                await self._publisher.publish(_question(rollout, ticket, ticket.messages, self._now()))
                await self._storage.published(ticket.ticket_id)

    async def _refusal(self, rollout: Rollout, since: datetime) -> str:
        """Why vLLM does not serve the candidate; empty if it does. A move towards users is never made blindly.

        `since`: when the move was due. Raises DependencyUnavailable while it may still become possible.
        """
        if rollout.stage in (Stage.REJECTED, Stage.ROLLED_BACK):
            return ""
        try:
            await self._adapters.serve(rollout.candidate, rollout.candidate_uri)
        except ArtifactMissing as error:
            if self._now() - since < _ARTIFACT_PATIENCE:
                raise
            return f"{rollout.candidate} is not in the artifact store any more: {error.reason}. Was it deleted?"
        except InvalidMessage as error:
            return (
                f"vLLM does not serve {rollout.candidate}: {error.reason}. Is the artifact folder there for every "
                "replica, and the adapter's rank within --max-lora-rank?"
            )
        return ""

    async def _active(self, task: str) -> Rollout | None:
        last = await self._storage.last_entered(task)
        return last if last is not None and last.active else None

    async def _held(self, rollout: Rollout, decision: Decision) -> bool:
        """Whether an operator's hand on the flags holds more exposure back. Rejections are never held."""
        if decision.stage is Stage.REJECTED:
            return False
        seen = await flags.observe(self._admin, rollout.task)
        primary_on = seen.primary is not None and seen.primary.enabled
        if primary_on and not seen.rolled_back:
            return False
        waits = f"{rollout.candidate} has earned {decision.stage.value}"
        if self._waiting.get(rollout.task) != waits:
            self._waiting[rollout.task] = waits
            logger.warning("%s: %s but waits: primary is off or rollback is on", rollout.task, waits)
        return True


def _question(rollout: Rollout, ticket: DrawnTicket, messages: Messages, now: datetime) -> LabelRequested:
    """What a person is asked about a pair, blind. The same ask has the same id; a second person's is another."""
    request = ticket.ticket_id if ticket.labels == 0 else f"{ticket.ticket_id}.{ticket.labels + 1}"
    return LabelRequested(
        event_id=event_id("ask", request),
        occurred_at=now,
        task=rollout.task,
        task_revision=rollout.task_revision,
        cycle_id=rollout.cycle_id,
        request_id=request,
        prediction_id=ticket.prediction_id,
        purpose=Purpose.DISCORDANT_PAIR,
        messages=messages,
        answers=ticket.pair.sides,
        labels=rollout.spec.labels,
        priority=_PRIORITY,
        ticket_id=ticket.ticket_id,
        user_hash=ticket.user_hash,
        predicted_at=ticket.logged_at,
    )
