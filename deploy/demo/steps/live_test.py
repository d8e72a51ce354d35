"""The live proof: fresh traffic from new users while shadow compares, people judge, and wealth buys exposure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from deploy.demo.clients import Gateway
from deploy.demo.data.csv_file import Row
from deploy.demo.pairs import PairLedger, Standing
from deploy.demo.reviewers import Reviewers
from deploy.demo.state import Turn
from deploy.demo.steps.cycle import CyclePage, follow, poll, stage_in
from deploy.demo.steps.learning import Stopped, stopped_by
from deploy.demo.terminal import Bar

SENDERS = 2
MOST_UNSEEN = 8
"""Live answers that shadow may not have replayed yet before the traffic waits: on two cores it would only queue."""
PATIENCE_SECONDS = 6.0
QUIET_SECONDS = 40.0


class LiveTraffic:
    """Sends each live row once, as a user of its own, no faster than shadow and people keep up."""

    def __init__(self, gateway: Gateway, rows: Sequence[Row], reviewers: Reviewers, ledger: PairLedger) -> None:
        self._gateway = gateway
        self._rows = list(enumerate(rows))
        self._reviewers = reviewers
        self._ledger = ledger
        self._standing = Standing()
        self.total = len(rows)
        self.sent = 0
        self.canary = 0
        self.failed = 0
        self.moved_at = time.monotonic()

    @property
    def used_up(self) -> bool:
        return not self._rows

    @property
    def quiet_seconds(self) -> float:
        """Since anything changed: a row sent, a pair compared, a label given."""
        self.look()
        return time.monotonic() - self.moved_at

    def look(self) -> Standing:
        """Where the test stands; notes when that changed."""
        standing = self._ledger.standing()
        if standing != self._standing:
            self._standing, self.moved_at = standing, time.monotonic()
        return standing

    async def flow(self) -> None:
        """Send until the rows are used up; cancel to stop."""
        await asyncio.gather(*(self._send() for _ in range(SENDERS)))

    async def _send(self) -> None:
        while self._rows:
            await self._room()
            if not self._rows:
                return
            number, row = self._rows.pop(0)
            asked = await self._gateway.ask(row, f"live-{number}")
            self.moved_at = time.monotonic()
            self.sent += 1
            self.failed += not asked.ok
            self.canary += asked.variant == "canary"
            if asked.ok:
                self._reviewers.know(asked.prediction_id, row)

    async def _room(self) -> None:
        """Wait while shadow or people lag behind and still move; what is never replayed must not stop the traffic."""
        while True:
            standing = self.look()
            unseen = self.sent - self.failed - self.canary - standing.pairs
            if unseen <= MOST_UNSEEN and standing.pending <= MOST_UNSEEN:
                return
            if time.monotonic() - self.moved_at > PATIENCE_SECONDS:
                return
            await asyncio.sleep(0.25)


async def prove_live(turn: Turn) -> None:
    """Shadow, canary, promoted. Raises Stopped where the candidate does not get there."""
    with turn.show.step("rollout", "The deployer takes the candidate into shadow"):
        event = await _stage(turn, None, None, 90.0, "shadow", "canary", "promoted", "rejected")
        turn.ledger.rollout_id = event["rollout_id"]
    turn.show.say(
        f"alpha {event['evidence']['alpha']:.5f}: wealth {turn.spec.rollout.canary_wealth:.0f} buys a "
        f"{turn.spec.rollout.canary_percent} % canary, {1 / event['evidence']['alpha']:.0f} everyone"
    )
    traffic = LiveTraffic(turn.gateway, turn.parts.live, turn.reviewers, turn.ledger)
    sending = asyncio.create_task(traffic.flow())
    turn.background.append(sending)
    try:
        with turn.show.step("shadow", "Live traffic: shadow pairs, blind judgements, wealth") as bar:
            event = await _stage(turn, traffic, bar, 120.0, "canary", "promoted", "rejected", "rolled_back")
        _noted(turn, event)
        if event["stage"] == "canary":
            with turn.show.step("canary", f"Canary: {turn.spec.rollout.canary_percent} % of users get it") as bar:
                event = await _stage(turn, traffic, bar, 120.0, "promoted", "rejected", "rolled_back")
            _noted(turn, event)
    finally:
        sending.cancel()
        turn.background.remove(sending)
        turn.result.canary_answers = traffic.canary
    if event["stage"] != "promoted":
        raise Stopped(f"betting test ({event['stage']})", f"{event['reason']}; {_evidence(event['evidence'])}")
    turn.result.promoted = True
    await _await_served(turn)


async def _await_served(turn: Turn) -> None:
    """Until the gateway has seen the flag: three users in a row get the promoted adapter."""
    seconds, row, users = 30.0, turn.parts.traffic[0], iter(range(10_000))
    with turn.show.step("served", "The flag has moved: until the gateway obeys") as bar:

        async def served() -> bool:
            answers = [await turn.gateway.ask(row, f"probe-{next(users)}") for _ in range(3)]
            bar.update(message=answers[-1].variant)
            return all(asked.variant == "primary" for asked in answers)

        late = turn.late("the gateway does not serve the promoted adapter", seconds)
        await poll(served, turn.limit(seconds), late)


async def _stage(
    turn: Turn, traffic: LiveTraffic | None, bar: Bar | None, seconds: float, *stages: str
) -> dict[str, Any]:
    def look(page: CyclePage) -> object:
        turn.check_background()
        turn.result.rollouts = page.events("rollouts.changed")
        if traffic is None or bar is None:
            return None
        bar.update(traffic.sent, traffic.total, _line(traffic.look(), traffic))
        if traffic.used_up and traffic.quiet_seconds > turn.limit(QUIET_SECONDS):
            raise _used_up(turn, traffic)
        return traffic.sent, traffic.look()

    late = turn.late(f"the rollout did not get to {' or '.join(stages[:2])}", seconds)
    find = stage_in(*stages)
    event, page = await follow(turn.console, turn.result.cycle_id, find, turn.limit(seconds), look, late)
    turn.result.rollouts = page.events("rollouts.changed")
    if event is None:
        raise stopped_by(page)
    return event


def _used_up(turn: Turn, traffic: LiveTraffic) -> Stopped:
    standing = traffic.look()
    stage = turn.result.rollouts[-1]["stage"] if turn.result.rollouts else "shadow"
    return Stopped(
        f"betting test (still in {stage} when the live traffic was used up)",
        f"after {traffic.sent} live requests, each used once: {standing.pairs} pairs, {standing.wins} wins, "
        f"{standing.losses} losses, {standing.ties} ties, {standing.pending} unjudged, wealth {standing.wealth:.3g} "
        f"of the {turn.spec.rollout.canary_wealth:.0f} that a canary costs; {traffic.canary} canary answers of the "
        f"{turn.spec.rollout.min_canary_requests} needed",
    )


def _noted(turn: Turn, event: dict[str, Any]) -> None:
    turn.result.stage_labels[event["stage"]] = turn.ledger.standing().labels
    turn.show.say(f"[bold]{event['stage']}[/]: {event['reason']} · {_evidence(event['evidence'])}")


def _evidence(evidence: dict[str, Any]) -> str:
    return (
        f"{evidence['wins']} wins, {evidence['losses']} losses, {evidence['ties']} ties, "
        f"{evidence['pending']} pending, wealth {evidence['wealth']:,.1f} (alpha {evidence['alpha']:.5f})"
    )


def _line(standing: Standing, traffic: LiveTraffic) -> str:
    return (
        f"{standing.pairs} pairs, {standing.agree} agree, {standing.wins}:{standing.losses} judged, "
        f"{standing.pending} open, wealth {standing.wealth:,.1f}, {traffic.canary} canary answers"
    )
