"""Changes of a rollout: save the change, set the flags, publish the event, in this order.

A crash between any two steps is harmless. The change is first saved as unsettled, and `settle`, which runs before every
decision and at every tick, repeats the flags (idempotent) and the event (same id) of what is unsettled.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from schemas.base import utc_now
from schemas.conversation import Call
from schemas.labels import LabelRequested, Purpose
from schemas.rollouts import Evidence, Stage
from services.deployer.clients import AdapterServer, ArtifactMissing, FlagAdmin
from services.deployer.domain import Ledger, control_evidence, decide, decide_waiting, holds_back
from services.deployer.flags import (
    TaskFlags,
    apply_flags,
    changed_by_hand_since,
    flag_name,
    newest_entry,
    read_control,
    read_flags,
)
from services.deployer.rollout import CONTROL_TICKETS, ENDED, RATCHET, Rollout, ServingState, next_serving_state
from services.deployer.statistics.canary import canary_failure
from services.deployer.statistics.non_inferiority import Allowance, margin_left
from services.deployer.storage.ledger import LedgerStore
from services.deployer.storage.rollouts import RolloutStore
from services.deployer.tickets import DrawnTicket
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.identity import event_id
from shared.kafka.publisher import Publisher

MAX_OPEN_TICKETS = 40
"""Of a candidate: reviewers answer the newest questions, not last week's."""
_PRIORITY = 2.0
"""Above every low-confidence question (at most 1): a candidate waits for these answers."""
_MISSING_ARTIFACT_TIMEOUT = timedelta(minutes=15)
"""An adapter is stored before its events are published. One that is missing for so long was deleted; waiting for it any
longer would block all later candidates of the task."""
_EVIDENCE_INTERVAL = timedelta(minutes=1)

logger = logging.getLogger(__name__)


class RolloutTransitions:
    """Moves the rollouts of all tasks. Call its methods with the task locked: `async with rollouts.locked(task)`."""

    def __init__(
        self,
        rollouts: RolloutStore,
        ledger: LedgerStore,
        admin: FlagAdmin,
        adapters: AdapterServer,
        publisher: Publisher,
        max_open_tickets: int = MAX_OPEN_TICKETS,
    ) -> None:
        self._missed: dict[str, datetime] = {}
        """Rollouts whose adapter is not in the artifact store, and since when."""
        self._rollouts = rollouts
        self._ledger = ledger
        self._admin = admin
        self._adapters = adapters
        self._publisher = publisher
        self._max_open_tickets = max_open_tickets
        self._published: dict[str, tuple[tuple[str, int], Evidence, datetime]] = {}
        self.approval: dict[str, bool] = {}
        """By task whether a person must approve the last step by now, whatever its candidate was evaluated with."""

    async def settle(self, task: str) -> None:
        """Finish every change of the task whose flags or event may not have been applied and published.

        While flags wait nothing is published: the table of rollouts has one for each task, the last, and a newer
        candidate that is queued or rejected must not take the place of the one that is compared.
        """
        for rollout in await self._rollouts.unsettled(task):
            if rollout.moves_flags:
                current = await self._begun(rollout)
                if (instead := await self._instead_of(current)) is not None:
                    await self._rollouts.save(instead)
                    current = await self._begun(instead)
                if (counting := current.with_flags_begun(utc_now())) != current:
                    await self._rollouts.set_counted(counting)
                await apply_flags(self._admin, counting)
                await self._rollouts.set_written(counting)
        for rollout in await self._rollouts.unsettled(task):
            await self._publisher.publish(rollout.event())
            await self._rollouts.settle(rollout)
            logger.info("%s: %s is %s: %s", task, rollout.candidate, rollout.stage.value, rollout.reason)

    async def _begun(self, rollout: Rollout) -> Rollout:
        """Return a change that sets flags with the place in Unleash's log from which a hand on them is told by it."""
        is_begun = rollout.log_entry is not None or not (rollout.adds_traffic or rollout.active)
        if is_begun or (entry := await newest_entry(self._admin)) is None:
            return rollout
        begun = replace(rollout, log_entry=entry)
        await self._rollouts.set_begun(begun)
        return begun

    async def _instead_of(self, rollout: Rollout) -> Rollout | None:
        """Return what takes the place of a change whose flags are not set: an end, or its stage before, where a hand,
        labels that came meanwhile, or an approval that is asked for meanwhile hold it back.

        None: the change is made. One that gives the candidate no more traffic always is. Raises DependencyUnavailable
        while it waits.
        """
        if not rollout.adds_traffic:
            return None
        if reason := await self._guard(rollout):
            return rollout.with_refusal(reason, utc_now())
        stands = rollout.standing
        ledger, age = await self.ledger(stands), utc_now() - stands.stage_since
        end = decide_waiting(stands.stage, ledger, stands.alpha, stands.spec.rollout, age)
        if end is None:
            why = holds_back(stands.stage, ledger, stands.alpha, stands.spec.rollout) if rollout.rises else ""
            by_evidence = rollout.rises and rollout.stage is Stage.PROMOTED and rollout.moved_by == RATCHET
            if not why and by_evidence and self._needs_approval(rollout):
                why = "its next move is not made: the task wants a person's approval by now"
            if why:
                reason = f"stays in {stands.stage.value}, {why}"
                return stands.with_stage(stands.stage, reason, ledger.evidence(stands.alpha), utc_now())
            try:
                return await self._paused_or_refused(rollout)
            except DependencyUnavailable as error:
                end = decide_waiting(stands.stage, ledger, stands.alpha, stands.spec.rollout, age, error.reason)
                if end is None:
                    raise
        return stands.with_stage(end.stage, end.reason, ledger.evidence(stands.alpha), utc_now())

    def _needs_approval(self, rollout: Rollout) -> bool:
        return self.approval.get(rollout.task, rollout.spec.rollout.approval)

    async def _paused_or_refused(self, rollout: Rollout) -> Rollout | None:
        if (paused := await self._paused_instead(rollout)) is not None:
            return paused
        if refusal := await self.refusal(rollout):
            return rollout.with_refusal(refusal, utc_now())
        return await self._paused_instead(rollout)  # Again: a replica may have taken a while to prove it.

    async def _paused_instead(self, rollout: Rollout) -> Rollout | None:
        """Return the rollout, in the stage before a rise, paused where a hand was on a flag meanwhile; else None."""
        if rollout.paused:  # An entry, whose flags are set all the same, but for those that a hand turned.
            return None
        flags = await read_flags(self._admin, rollout.task)
        by_hand = flags.changed_by_hand(rollout) | await changed_by_hand_since(self._admin, rollout, flags)
        return await self._touched(rollout, by_hand)

    async def publish_again(self, task: str) -> None:
        """Publish the task's last change once more."""
        if (newest := await self._rollouts.newest(task)) is not None and newest.settled:
            await self._publisher.publish(newest.event())

    async def serving(self, task: str, base_model: str) -> ServingState:
        """Return who serves the task now. A task without any rollout yet is read from its primary flag."""
        if (last := await self._rollouts.last_changed(task)) is not None:
            return next_serving_state(last.standing, base_model)
        state = await self._admin.read(flag_name(task, "primary"))
        payload = (state.payload or {}) if state is not None and state.enabled else {}
        return ServingState(payload.get("adapter"), payload.get("previous"))

    async def standing_promotion(self, task: str) -> Rollout | None:
        """Return the promotion by which the primary serves, or the one that was rolled back last; None: there is none.

        A candidate that ended later leaves the promotion before it standing if it was compared with what that serves.
        """
        last = await self._rollouts.last_changed(task)
        if last is not None and last.stage in ENDED:
            promoted = await self._rollouts.last_promoted(task)
            if promoted is None or (promoted.candidate, promoted.previous) != (last.primary, last.previous):
                return None
            return promoted
        return last if last is not None and last.stage in (Stage.PROMOTED, Stage.ROLLED_BACK) else None

    async def staying(self, task: str, why: str) -> list[Rollout]:
        """Return the candidate that is compared, or has a control, with a change that repeats its stage."""
        rollout = await self._rollouts.last_entered(task)
        if rollout is None or not rollout.standing.compared:
            return []
        reason = f"stays in {rollout.stage.value}: {why}"
        evidence = await self.evidence(rollout) if rollout.active else rollout.evidence
        moved_by = rollout.moved_by if rollout.rises else RATCHET  # A promotion that waits stays the person's.
        return [rollout.with_stage(rollout.stage, reason, evidence, utc_now(), moves_flags=False, moved_by=moved_by)]

    async def evidence(self, rollout: Rollout) -> Evidence:
        """Return what a candidate's labels say by now."""
        return (await self.ledger(rollout)).evidence(rollout.alpha)

    async def ledger(self, rollout: Rollout) -> Ledger:
        """Return what the decision about a candidate reads, and the margin that its task has left if it may use one."""
        ledger, settings = await self._ledger.load(rollout.rollout_id), rollout.spec.rollout
        if not settings.non_inferiority:
            return ledger
        left = margin_left(await self._rollouts.promotions(rollout.task), utc_now())
        return replace(ledger, allowance=Allowance(left, settings.annotator_error))

    async def advance(self, task: str) -> Rollout | None:
        """Decide about the task's active candidate, and act on the decision. Returns the one that is active then.

        Raises DependencyUnavailable while a move waits. Meanwhile harm ends the candidate, and people are asked.
        """
        try:
            return await self._decide(task)
        except DependencyUnavailable:
            await self.end_if_harmful(task)
            if (waiting := await self.active(task)) is not None:
                await self._ask_people(waiting)  # Harm must be seen.
            raise

    async def _decide(self, task: str) -> Rollout | None:
        await self.settle(task)
        rollout = await self.active(task)
        if rollout is None:
            return None
        ledger = await self.ledger(rollout)
        age = utc_now() - rollout.stage_since
        decision = decide(rollout.stage, ledger, rollout.alpha, rollout.spec.rollout, age)
        if decision is not None and decision.stage not in ENDED:
            rollout = await self.paused_if_touched(rollout)
            if rollout.paused or (decision.stage is Stage.PROMOTED and self._needs_approval(rollout)):
                decision = decide(rollout.stage, ledger, rollout.alpha, rollout.spec.rollout, age, held=True)
        if decision is None:
            await self._ask_people(rollout)  # While it is held, too: harm must be seen.
            await self._publish_evidence(rollout, lambda: ledger.evidence(rollout.alpha))
            return rollout
        evidence = ledger.evidence(rollout.alpha, decision.margin)
        if decision.stage is Stage.PROMOTED:
            changed = rollout.with_promotion(decision.reason, evidence, utc_now())
        elif decision.stage is Stage.CANARY:
            changed = rollout.with_canary(decision.percent, decision.reason, evidence, utc_now())
        else:
            changed = rollout.with_stage(decision.stage, decision.reason, evidence, utc_now())
        await self._rollouts.save(changed)
        return await self._decide(task)  # Settles it, and checks whether that suffices for the next stage already.

    async def paused_if_touched(self, rollout: Rollout) -> Rollout:
        """Pause an active candidate one of whose flags is not as its last change left it. Returns what it is now.

        Whichever flag it is, and whatever it is by then: a canary that was turned off is no proof that nobody was
        harmed, and shadow that was turned off is no wish for a canary. Its guards count at the share that is in force.
        """
        flags = await read_flags(self._admin, rollout.task)
        rollout = await self._counted_at_share(rollout, flags)
        if rollout.paused or (paused := await self._touched(rollout, flags.changed_by_hand(rollout))) is None:
            return rollout
        await self._rollouts.save(paused)
        await self.settle(rollout.task)
        return paused

    async def _counted_at_share(self, rollout: Rollout, flags: TaskFlags) -> Rollout:
        """Return a rollout whose guards count at the share that is in force, which a hand may have changed."""
        share = flags.canary_share(rollout) if rollout.stage is Stage.CANARY else rollout.counted_percent
        if share == rollout.counted_percent:
            return rollout
        counted = rollout.counted_at(share, utc_now())
        await self._rollouts.set_counted(counted)
        return counted

    async def end(self, task: str, stage: Stage, reason: str, moved_by: str = RATCHET) -> None:
        """End the task's active candidate for a reason outside of the test. `stage`: rejected or inconclusive.

        A move of it that waits is not made any more.
        """
        if (rollout := await self.active(task)) is not None:
            evidence = await self.evidence(rollout)
            await self._rollouts.save(rollout.with_stage(stage, reason, evidence, utc_now(), moved_by=moved_by))
            await self.settle(task)

    async def end_if_harmful(self, task: str) -> None:
        """End the task's candidate if its guards or its labels do, where nothing else can be decided or made yet.

        The end takes the place of a change that waits: its flags are set before any event is published.
        """
        last = await self._rollouts.last_entered(task)
        if last is None or not (stands := last.standing).active:
            return
        if last.stage is Stage.CANARY and not last.flags_pending:
            with contextlib.suppress(DependencyUnavailable):  # Unleash may be what is away.
                last = await self._counted_at_share(last, await read_flags(self._admin, task))
        reason = await self._guard(last)
        if not reason:
            ledger = await self.ledger(stands)
            harm = decide_waiting(stands.stage, ledger, stands.alpha, stands.spec.rollout, timedelta())
            reason = harm.reason if harm is not None else ""
        if reason:
            await self.end(task, Stage.REJECTED, reason)

    async def watch_flags(self, task: str) -> None:
        """Look for flags that an operator changed. They are not changed back: they pause a candidate that is compared.

        A rollback of the adapter that serves, and its end, are moves as well.
        """
        last = await self._rollouts.last_entered(task)
        if last is None or not last.settled:
            return
        if last.active:
            await self.paused_if_touched(last)
        elif (promoted := await self.standing_promotion(task)) is not None:
            await self._follow_rollback(promoted)
        await self.settle(task)

    async def watch_control(self, task: str) -> None:
        """Look after the control of the last promotion: guards and fresh labels may take it back, its time ends it.

        A hand on its flag, or on the primary's, which it is compared with, ends it, too. Meanwhile people are asked
        about fresh pairs, which tell the gain.
        """
        last = await self._rollouts.last_entered(task)
        if last is None or not last.control or last.flags_pending:
            return
        settings, fresh = last.spec.rollout, await self._ledger.load(last.rollout_id, fresh=True)
        evidence = control_evidence(last.evidence, fresh, settings)
        if reason := canary_failure(fresh.canary, settings, fresh.outcomes):
            back = f"{reason}: {last.previous or 'the base model'} serves again"
            changed = last.taken_back(back, evidence, utc_now())
        elif not last.settled:  # Its event waits, and with it all that is no harm.
            return
        elif utc_now() > last.control_until:
            over = f"{settings.control_days:g} days without harm that guards or labels see"
            changed = last.without_control(over, evidence, utc_now())
        elif not await read_control(self._admin, last):
            by = await self._hand_on(task, "control")
            changed = last.without_control("its flag was changed by hand", evidence, utc_now(), by)
        elif by_hand := (await read_flags(self._admin, task)).differences(last).get("primary"):
            by = await self._hand_on(task, "primary")
            changed = last.without_control(f"{by_hand}, by hand", evidence, utc_now(), by)
        else:
            await self._ask_people(last)
            if fresh.asked >= CONTROL_TICKETS and not last.replays_ended:
                await self._admin.switch(flag_name(task, "shadow"), False)
                await self._rollouts.end_replays(last)  # Once: afterwards the flag belongs to the operator again.
            await self._publish_evidence(last, lambda: evidence)
            return
        await self._rollouts.save(changed)
        await self.settle(task)

    async def _follow_rollback(self, last: Rollout) -> None:
        flags = await read_flags(self._admin, last.task)
        is_on, payload = flags.rolled_back, (flags.primary and flags.primary.payload) or {}
        if is_on is (last.stage is Stage.ROLLED_BACK):
            return
        if not is_on and payload.get("adapter") != last.candidate:  # It was taken back by primary's payload.
            return
        by = await self._hand_on(last.task, "rollback")
        if is_on:
            if last.control:  # Else some users would stay on the adapter before once rollback is turned off.
                await self._admin.switch(flag_name(last.task, "control"), False)
                await self._admin.switch(flag_name(last.task, "shadow"), False)
            whom = flags.rolled_back_in_part
            reason = f"rollback was turned on: {last.previous or 'the base model'} serves again{whom}"
            changed = last.taken_back(reason, last.evidence, utc_now(), by, moves_flags=False)
        else:
            reason = f"rollback was turned off: {last.candidate} serves again"
            changed = last.with_stage(
                Stage.PROMOTED, reason, last.evidence, utc_now(), moves_flags=False, moved_by=by
            ).with_serving(last.candidate, last.primary)
        await self._rollouts.save(changed)

    async def _ask_people(self, rollout: Rollout) -> None:
        """Publish questions about the next pairs that differ, a few at a time, in shadow and canary alike."""
        await self._ledger.draw_tickets(rollout, self._max_open_tickets)
        for ticket in await self._ledger.unpublished_tickets(rollout.rollout_id):
            if ticket.call is not None:
                await self._publisher.publish(_question(rollout, ticket, ticket.call, utc_now()))
                await self._ledger.set_published(ticket.ticket_id)

    async def _publish_evidence(self, rollout: Rollout, evidence_now: Callable[[], Evidence]) -> None:
        """Publish a running candidate's evidence at most once a minute, when labels have changed it or a warning came.

        Between two moves, which may be weeks apart, nobody else sees what the labels say. After a restart it may be
        published again, as the same event.
        """
        change, now = (rollout.rollout_id, rollout.version), utc_now()
        last = self._published.get(rollout.task)
        if last is None or last[0] != change:
            last = change, rollout.evidence, rollout.changed_at
        if now - last[2] < _EVIDENCE_INTERVAL:
            return
        evidence = evidence_now()
        if _worth_an_event(evidence) != _worth_an_event(last[1]):
            await self._publisher.publish(rollout.evidence_event(evidence, now))
        self._published[rollout.task] = change, evidence, now

    async def refusal(self, rollout: Rollout) -> str:
        """Return why vLLM does not serve the candidate, or "". Checked before every move towards users.

        Raises DependencyUnavailable while the move may still become possible.
        """
        try:
            await self._adapters.serve(rollout.candidate, rollout.candidate_uri, rollout.spec)
        except ArtifactMissing as error:
            # Since it was first missed, not since the move was due: a store may be mounted after a restart.
            if utc_now() - self._missed.setdefault(rollout.rollout_id, utc_now()) < _MISSING_ARTIFACT_TIMEOUT:
                raise
            return f"{rollout.candidate} is not in the artifact store any more: {error.reason}. Was it deleted?"
        except DependencyUnavailable:  # It is there now.
            self._missed.pop(rollout.rollout_id, None)
            raise
        except InvalidMessage as error:
            way_out = error.way_out or (
                "Does every replica see the artifact folder, and is the adapter's rank within --max-lora-rank?"
            )
            return f"vLLM does not serve {rollout.candidate}: {error.reason}. {way_out}"
        self._missed.pop(rollout.rollout_id, None)
        return ""

    async def _guard(self, rollout: Rollout) -> str:
        """Return why the guards end a candidate that may serve users, whatever change of it waits, else ""."""
        if not rollout.may_serve:
            return ""
        return canary_failure(await self._ledger.canary(rollout.rollout_id), rollout.spec.rollout)

    async def is_failing(self, rollout: Rollout) -> bool:
        """Return True if the guards end this canary, or take back its promotion, as counted by now."""
        is_over = rollout.stage is Stage.PROMOTED and rollout.settled and not rollout.control
        if is_over or not rollout.may_serve:
            return False
        if rollout.control:
            fresh = await self._ledger.load(rollout.rollout_id, fresh=True)
            return bool(canary_failure(fresh.canary, rollout.spec.rollout, fresh.outcomes))
        return bool(canary_failure(await self._ledger.canary(rollout.rollout_id), rollout.spec.rollout))

    async def active(self, task: str) -> Rollout | None:
        """Return the task's candidate that is in shadow or canary, as it stands while its next move waits."""
        last = await self._rollouts.last_entered(task)
        return last.standing if last is not None and last.standing.active else None

    async def _touched(self, rollout: Rollout, by_hand: Mapping[str, str]) -> Rollout | None:
        """Return the rollout, as it stands, paused for each flag that a hand changed; None: there is none."""
        if not by_hand:
            return None
        by = await self._hand_on(rollout.task, next(iter(by_hand)))
        reason = f"{'; '.join(by_hand.values())}, by hand"
        return rollout.standing.with_pause(reason, await self.evidence(rollout.standing), utc_now(), by)

    async def _hand_on(self, task: str, flag: str) -> str:
        return f"{await self._admin.changed_by(flag_name(task, flag)) or 'somebody'} in Unleash"[:200]


def _worth_an_event(evidence: Evidence) -> tuple[float, ...]:
    """What is worth another event: the labels, and whether there is a warning; its numbers change with every answer."""
    counts = evidence.labels, evidence.wins, evidence.losses, evidence.control_labels
    return *counts, evidence.wealth, bool(evidence.warning)


def _question(rollout: Rollout, ticket: DrawnTicket, call: Call, now: datetime) -> LabelRequested:
    """Return the blind question about a pair. Its id is the same when published again; a second person's differs."""
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
        call=call,
        answers=ticket.pair.sides,
        labels=rollout.spec.choices,
        priority=_PRIORITY,
        ticket_id=ticket.ticket_id,
        session_hash=ticket.session_hash,
        user_hash=ticket.user_hash,
        predicted_at=ticket.logged_at,
    )
