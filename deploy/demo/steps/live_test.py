"""The live test: new traffic from new users, while shadow compares, people judge, and the betting test decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from deploy.demo.clients import DeployerClient, GatewayClient
from deploy.demo.data.rows import DataRow
from deploy.demo.errors import CandidateStopped
from deploy.demo.pairs import PairCounts, PairLedger
from deploy.demo.reviewers import Reviewers
from deploy.demo.state import LoopContext
from deploy.demo.steps.cycle import POLL_SECONDS, CyclePage, follow, poll, stage_in
from deploy.demo.steps.learning import stopped_by
from deploy.demo.terminal import StepProgress

SENDERS = 2
MAX_BACKLOG = 8
"""Answers that shadow has not compared yet, or pairs that nobody has judged, above which the traffic waits."""
STALL_SECONDS = 6.0
"""A backlog that has not changed for so long no longer holds the traffic up."""
_ENDS = ("promoted", "rejected", "inconclusive", "rolled_back")
"""The stages from which a candidate goes no further."""
QUIET_SECONDS = 40.0
"""Once all rows are sent, the test ends without a decision when nothing has changed for so long."""


async def watch_pairs(deployer: DeployerClient, pairs: PairLedger) -> None:
    """Note what the deployer says of the candidate, until cancelled."""
    while True:
        if (rollout := await deployer.rollout()) is not None:
            pairs.add(rollout["evidence"])
        await asyncio.sleep(POLL_SECONDS)


class LiveTraffic:
    """Sends each live row once, as a user of its own, no faster than shadow and people follow."""

    def __init__(
        self, gateway: GatewayClient, rows: Sequence[DataRow], reviewers: Reviewers, ledger: PairLedger
    ) -> None:
        self._gateway = gateway
        self._rows = list(enumerate(rows))
        self._reviewers = reviewers
        self._ledger = ledger
        self._counts = PairCounts()
        self._changed_at = time.monotonic()
        self.total = len(rows)
        self.sent = 0
        self.canary = 0
        self.failed = 0

    @property
    def used_up(self) -> bool:
        return not self._rows

    @property
    def quiet_seconds(self) -> float:
        """Seconds since anything changed: a row sent, a pair compared, a label given."""
        self.pair_counts()
        return time.monotonic() - self._changed_at

    def pair_counts(self) -> PairCounts:
        """Return the counts of pairs, and remember when they changed."""
        counts = self._ledger.counts()
        if counts != self._counts:
            self._counts, self._changed_at = counts, time.monotonic()
        return counts

    async def send_all(self) -> None:
        """Send all rows; cancel to stop earlier."""
        await asyncio.gather(*(self._send_rows() for _ in range(SENDERS)))

    async def _send_rows(self) -> None:
        while self._rows:
            await self._wait_for_backlog()
            if not self._rows:
                return
            number, row = self._rows.pop(0)
            answer = await self._gateway.ask(row, f"live-{number}")
            self._changed_at = time.monotonic()
            self.sent += 1
            self.failed += not answer.ok
            self.canary += answer.variant == "canary"
            if answer.ok:
                self._reviewers.add_prediction(answer.prediction_id, row)

    async def _wait_for_backlog(self) -> None:
        """Wait while shadow or people lag behind, unless they have stalled: what is never replayed must not block."""
        while True:
            counts = self.pair_counts()
            uncompared = self.sent - self.failed - self.canary - counts.pairs
            if uncompared <= MAX_BACKLOG and counts.pending <= MAX_BACKLOG:
                return
            if time.monotonic() - self._changed_at > STALL_SECONDS:
                return
            await asyncio.sleep(0.25)


async def prove_live(loop: LoopContext) -> None:
    """Take the candidate from shadow over canary to promoted. Raises CandidateStopped if it does not get there."""
    rollout = loop.setup.task.rollout
    with loop.terminal.step("rollout", "The deployer takes the candidate into shadow"):
        event = await _stage(loop, None, None, 90.0, "shadow", "canary", *_ENDS)
    alpha = event["evidence"]["alpha"]
    loop.terminal.say(
        f"alpha {alpha:.5f}: wealth {rollout.canary_wealth:.0f} opens a {rollout.canary_steps[0]} % canary, "
        f"{1 / alpha:.0f} promotes, step by step"
    )
    traffic = LiveTraffic(loop.clients.gateway, loop.setup.rows.live, loop.reviewers, loop.pairs)
    sending = asyncio.create_task(traffic.send_all())
    loop.background.append(sending)
    try:
        with loop.terminal.step("shadow", "Live traffic: shadow pairs, blind judgements, wealth") as progress:
            event = await _stage(loop, traffic, progress, 120.0, "canary", *_ENDS)
        _record_stage(loop, event)
        if event["stage"] == "canary":
            shares = ", then ".join(f"{percent} %" for percent in rollout.canary_steps)
            with loop.terminal.step("canary", f"Canary: {shares} of users get it") as progress:
                event = await _stage(loop, traffic, progress, 120.0, *_ENDS)
            _record_stage(loop, event)
    finally:
        sending.cancel()
        loop.background.remove(sending)
        loop.result.live_test.canary_answers = traffic.canary
    if event["stage"] != "promoted":
        evidence = f"{event['reason']}; {_describe(event['evidence'])}"
        raise CandidateStopped(f"betting test ({event['stage']})", evidence)
    loop.result.promoted = True
    await _await_served(loop)


async def _await_served(loop: LoopContext) -> None:
    """Wait until the gateway obeys the flag: three users in a row get the promoted adapter."""
    seconds, row, users = 30.0, loop.setup.rows.traffic[0], iter(range(10_000))
    with loop.terminal.step("served", "The flag was switched: waiting until the gateway obeys") as progress:

        async def served() -> bool:
            answers = [await loop.clients.gateway.ask(row, f"probe-{next(users)}") for _ in range(3)]
            progress.update(message=answers[-1].variant)
            return all(answer.variant == "primary" for answer in answers)

        timeout = loop.timeout("the gateway does not serve the promoted adapter", seconds)
        await poll(served, loop.limit(seconds), timeout)


async def _stage(
    loop: LoopContext, traffic: LiveTraffic | None, progress: StepProgress | None, seconds: float, *stages: str
) -> dict[str, Any]:
    """Wait until the rollout reaches one of these stages, while live traffic flows."""
    result = loop.result

    def check(page: CyclePage) -> object:
        loop.check_background()
        result.live_test.changes = _moves(page)
        if traffic is None or progress is None:
            return None
        progress.update(traffic.sent, traffic.total, _progress_line(traffic))
        if traffic.used_up and traffic.quiet_seconds > loop.limit(QUIET_SECONDS):
            raise _used_up(loop, traffic)
        return traffic.sent, traffic.pair_counts()

    timeout = loop.timeout(f"the rollout did not get to {' or '.join(stages[:2])}", seconds)
    event, page = await follow(
        loop.clients.console, result.cycle.cycle_id, stage_in(*stages), loop.limit(seconds), check, timeout
    )
    result.live_test.changes = _moves(page)
    if event is None:
        raise stopped_by(page)
    return event


def _moves(page: CyclePage) -> list[dict[str, Any]]:
    """The rollout's changes, without the events that repeat one with newer evidence."""
    events = page.events("rollouts.changed")
    return [event for n, event in enumerate(events) if n == 0 or event["reason"] != events[n - 1]["reason"]]


def _used_up(loop: LoopContext, traffic: LiveTraffic) -> CandidateStopped:
    counts, changes, rollout = traffic.pair_counts(), loop.result.live_test.changes, loop.setup.task.rollout
    stage = changes[-1]["stage"] if changes else "shadow"
    return CandidateStopped(
        f"betting test (still in {stage} when the live traffic was used up)",
        f"after {traffic.sent} live requests, each used once: {counts.pairs} pairs, {counts.wins} wins, "
        f"{counts.losses} losses, {counts.ties} ties, {counts.pending} unjudged, wealth {counts.wealth:.3g} "
        f"of the {rollout.canary_wealth:.0f} that a canary needs; {traffic.canary} canary answers, where each step "
        f"of the canary needs {rollout.min_canary_users} users",
    )


def _record_stage(loop: LoopContext, event: dict[str, Any]) -> None:
    loop.result.live_test.labels_at_stage[event["stage"]] = loop.pairs.counts().labels
    loop.terminal.say((event["stage"], "bold"), f": {event['reason']} · {_describe(event['evidence'])}")


def _describe(evidence: dict[str, Any]) -> str:
    return (
        f"{evidence['wins']} wins, {evidence['losses']} losses, {evidence['ties']} ties, "
        f"{evidence['pending']} pending, wealth {evidence['wealth']:,.1f} (alpha {evidence['alpha']:.5f})"
    )


def _progress_line(traffic: LiveTraffic) -> str:
    counts = traffic.pair_counts()
    return (
        f"{counts.pairs} pairs, {counts.ties} ties, {counts.wins}:{counts.losses} won, {counts.pending} open, "
        f"wealth {counts.wealth:,.1f}, {traffic.canary} canary answers"
    )
