"""Every move against the evidence that there was: what raised exposure, what ended a candidate, what was drawn."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.chaos.rollouts.checks.canary import RATIO, canary_requests, guard_problems, has_failed, users_since_step
from tests.chaos.rollouts.checks.history import Draw, History, Move
from tests.chaos.rollouts.checks.tickets import Tickets
from tests.chaos.rollouts.checks.wealth import binomial_mixture, draw, wealth

ENDED = ("promoted", "rejected", "inconclusive", "rolled_back")
_ACTIVE = ("shadow", "canary")
_NEXT = {
    "queued": ("queued", "shadow", "rejected", "inconclusive"),
    "shadow": ("shadow", "canary", "rejected", "inconclusive"),
    "canary": ("shadow", "canary", "promoted", "rejected", "inconclusive"),
    "promoted": ("canary", "promoted", "rejected", "rolled_back"),
    "rejected": (), "inconclusive": (), "rolled_back": (),
}  # fmt: skip
"""A promotion that was not settled may still be rejected; later its control ends, or it is rolled back. A rise that was
not settled may be taken back, where a person was at the flags or labels speak against it by then."""
_RISING = ("shadow", "canary", "promoted")
_HARM, _FUTILITY, _GUARD = 20.0, 10.0, 20.0
_CONTROL_OVER, _STAYS = "its control has ended", "stays in promoted"
_WANTS_APPROVAL = "wants a person's approval"
_LABELS_ALONE = 20.0
"""Less evidence of labels alone is no reason: it is the greatest of five guards whose mean is 20."""
_NEARLY = 1 - 1e-6
_NOTHING_DIFFERS = 1_000
_ALIKE = "nothing to promote"


def by_rollout(moves: Sequence[Move]) -> dict[str, list[Move]]:
    """Return each rollout's moves, in their order."""
    found = defaultdict[str, list[Move]](list)
    for move in sorted(moves, key=lambda move: move.version):
        found[move.rollout_id].append(move)
    return found


def goes_back(before: Move, move: Move) -> bool:
    """Return True if the move takes a rise back."""
    if move.stage not in _ACTIVE or before.stage not in _RISING:
        return False
    return _exposure(move) < _exposure(before)


def _exposure(move: Move) -> tuple[int, int]:
    return _RISING.index(move.stage), move.percent


def made(moves: Sequence[Move]) -> list[Move]:
    """Return a rollout's moves, in their order, without rises that were taken back."""
    found: list[Move] = []
    for move in moves:
        while found and goes_back(found[-1], move):
            found.pop()
        found.append(move)
    return found


def move_problems(history: History) -> Iterator[str]:
    """Check every rollout by itself, and that no task compared two at once."""
    rollouts = by_rollout(history.moves)
    last = {moves[-1].candidate: moves[-1].stage for moves in rollouts.values()}
    for candidate in history.expected:
        if last.get(candidate) not in ENDED:
            yield f"{candidate} never ended: it is {last.get(candidate, 'nowhere')}"
    for rollout_id, moves in rollouts.items():
        yield from _order_problems(rollout_id, moves)
        tickets = Tickets(history, rollout_id)
        for before, move in pairwise(moves):
            yield from (f"{move.candidate}, {move.stage}: {problem}" for problem in _unsupported(
                history, tickets, before, move
            ))  # fmt: skip
        asked = sum(ticket.entry.asked for ticket in tickets.all)
        entered = any(move.stage in _ACTIVE for move in moves)
        if entered and asked < history.rules.min_tickets and not moves[-1].reason.startswith(_ALIKE):
            yield f"{moves[-1].candidate}: only {asked} tickets, so little was tested"
    yield from _overlaps(rollouts, controls(history))


def _order_problems(rollout_id: str, moves: Sequence[Move]) -> Iterator[str]:
    if [move.version for move in moves] != list(range(len(moves))):
        yield f"{rollout_id}: its history has the versions {[move.version for move in moves]}"
    if moves[0].stage != "queued":
        yield f"{rollout_id} began as {moves[0].stage}"
    for before, move in pairwise(moves):
        if move.stage not in _NEXT[before.stage] or move.at < before.at:
            yield f"{rollout_id} went from {before.stage} to {move.stage}"


def _unsupported(history: History, tickets: Tickets, before: Move, move: Move) -> Iterator[str]:
    """Say why a move is not supported by what there was at its time."""
    said, rules = move.evidence, history.rules
    greatest = tickets.greatest_wealth(move.at)
    if said["wealth"] * _NEARLY > greatest:
        yield f"it claims a wealth of {said['wealth']:.4g}, and the answers so far allow {greatest:.4g}"
    for name, sign in (("wins", 1), ("losses", -1), ("labels", 0)):
        if said[name] > (possible := tickets.count(move.at, sign)):
            yield f"it counts {said[name]} {name}, and the answers so far are {possible}"
    if before.stage == "promoted" and move.reason.startswith(_STAYS):
        return
    if goes_back(before, move):
        yield from _not_taken_back(history, greatest, before, move)
        return
    if before.stage == "promoted" and move.stage != "rejected":
        yield from _control_not_over(history, tickets, before, move)
        return
    if move.stage == before.stage and move.percent == before.percent:
        return
    if move.paused and move.stage in ("canary", "promoted"):
        yield "a paused candidate was moved to more users"
    if move.stage in ("canary", "promoted"):
        is_first = before.stage == "shadow"
        threshold = rules.canary_wealth if is_first else 1 / said["alpha"]
        yield from _not_earned(said, greatest, threshold, min(rules.canary_wealth, 1 / said["alpha"]))
        steps = [100, *reversed(rules.canary_steps)]
        share = 100 if move.stage == "promoted" else move.percent
        if share not in steps or (0 if is_first else before.percent) != [*steps, 0][steps.index(share) + 1]:
            yield f"it went from {before.percent} to {share} % of users"
        if not is_first:
            if (served := users_since_step(history, before, move)) < rules.min_canary_users:
                yield f"the canary of {before.percent} % had served {served} users"
            yield from guard_problems(history, before, move)
    elif move.stage == "rejected":
        yield from _not_rejected(history, tickets, move)
    elif move.stage == "inconclusive":
        settled = sum(bool(ticket.possible(move.at)) for ticket in tickets.all if ticket.entry.asked)
        if "labels are spent" not in move.reason or settled < rules.max_labels:
            yield f"{settled} of {rules.max_labels} labels were there: {move.reason}"


def _not_taken_back(history: History, greatest: float, before: Move, move: Move) -> Iterator[str]:
    """A rise is taken back to where it came from, and only one that nobody was told of.

    It is paused, or the labels by then do not allow it any more, or the task wants a person's approval by then.
    """
    back = f"it went back from {before.stage} of {before.percent} % to {move.stage} of {move.percent} %"
    bar = 1 / move.evidence["alpha"]
    threshold, now = (
        history.rules.canary_wealth if move.stage == "shadow" else bar,
        min(history.rules.canary_wealth, bar),
    )
    held = move.paused or _WANTS_APPROVAL in move.reason
    if not held and not any(_not_earned(move.evidence, greatest, threshold, now)):
        yield f"{back}, and nobody paused it"
    if (before.rollout_id, before.stage, before.at) in {(c.rollout_id, c.stage, c.at) for c in history.changes}:
        yield f"{back}, and all had been told of the rise"
    earlier = [m for m in by_rollout(history.moves)[move.rollout_id] if m.version < before.version]
    came_from = next((m for m in reversed(earlier) if _exposure(m) != _exposure(before)), None)
    if came_from is None or _exposure(came_from) != _exposure(move):
        yield f"{back}, and was not there before"


def _control_not_over(history: History, tickets: Tickets, before: Move, move: Move) -> Iterator[str]:
    """After a promotion a control ends once: when its time is over, by a hand, or by what takes the promotion back."""
    seconds = history.rules.control_seconds
    of_rollout = by_rollout(history.moves)[move.rollout_id]
    promoted = next((m.at for m in of_rollout if m.stage == "promoted"), before.at)
    if before.reason.startswith(_CONTROL_OVER) or not seconds:
        yield f"it had no control any more: {move.reason}"
    elif move.stage == "rolled_back" and "by the pairs since" in move.reason:
        fresh = Tickets(history, move.rollout_id, fresh=True)
        if (harm := fresh.greatest_harm(move.at)) < _LABELS_ALONE:
            yield f"by its fresh pairs harm was {harm:.4g}"
    elif move.stage == "rolled_back":
        yield from _not_rejected(history, tickets, move)
    elif not move.reason.endswith("by hand") and ("without harm" not in move.reason or move.at - promoted < seconds):
        yield f"its control ended after {move.at - promoted:.0f} of {seconds:.0f} s: {move.reason}"


def controls(history: History) -> dict[str, list[tuple[float, float]]]:
    """Return by task from when to when some users were to stay on the adapter before a promotion."""
    found = defaultdict[str, list[tuple[float, float]]](list)
    for moves in by_rollout(history.moves).values():
        of_promotion = [
            move.at for before, move in pairwise(made(moves))
            if "promoted" in (before.stage, move.stage) and not move.reason.startswith(_STAYS)
        ]  # fmt: skip
        if of_promotion and history.rules.control_seconds:
            end = of_promotion[1] if len(of_promotion) > 1 else float("inf")
            found[moves[0].task].append((of_promotion[0], end))
    return found


def _not_earned(said: Mapping[str, Any], greatest: float, threshold: float, now: float) -> Iterator[str]:
    """Wealth was there, and the labels as they stood were still worth it, and did not show harm."""
    if greatest < threshold * _NEARLY:
        yield f"wealth {greatest:.4g} is less than {threshold:.4g}"
    wins, losses = [1.0] * int(said["wins"]), [-1.0] * int(said["losses"])
    if wealth([*wins, *losses]) < now * _NEARLY:
        yield f"{len(wins)} wins and {len(losses)} losses, as they stood, were worth {wealth([*wins, *losses]):.4g}"
    if wealth([-x for x in (*wins, *losses)]) >= _HARM:
        yield f"{len(wins)} wins and {len(losses)} losses showed harm"


def _not_rejected(history: History, tickets: Tickets, move: Move) -> Iterator[str]:
    if "the candidate is worse" in move.reason:
        if (harm := tickets.greatest_harm(move.at)) < _HARM * _NEARLY:
            yield f"harm was {harm:.4g}"
    elif "unlikely to win" in move.reason:
        if (odds := tickets.greatest_futility(move.at)) < _FUTILITY * _NEARLY:
            yield f"the odds against it were {odds:.4g}"
    elif found := re.search(r"fails too often: (\d+) of the (\d+) users .* has (\d+) % of users", move.reason):
        canary, bad, percent = map(int, found.groups())
        failed = {r.subject for r in canary_requests(history, move) if has_failed(r)}
        share = min(history.rules.canary_steps[0], percent) / 100  # Of the first step, where failures say most.
        if canary > len(failed) or binomial_mixture(canary, bad, share, RATIO) < _GUARD:
            yield f"{len(failed)} of its users had failed requests: {move.reason}"
    elif found := re.search(r"too slow: (\d+) of (\d+) answers took longer than (\d+) ms", move.reason):
        slow, _, limit = map(int, found.groups())
        subjects = {r.subject for r in canary_requests(history, move) if r.latency_ms > limit - 1}
        if len(subjects) < slow:
            yield f"{len(subjects)} of its users waited longer than {limit} ms: {move.reason}"
    elif move.reason.startswith(_ALIKE):
        pairs = [pair for pair in history.pairs if pair.rollout_id == move.rollout_id and not pair.fresh]
        alike = sum(pair.candidate == pair.production for pair in pairs)
        if tickets.all or alike < _NOTHING_DIFFERS:
            yield f"{alike} pairs agree, and people were asked about {len(tickets.all)}: {move.reason}"
    else:
        yield f"no evidence is a reason for: {move.reason}"


def _overlaps(rollouts: dict[str, list[Move]], controls: Mapping[str, list[tuple[float, float]]]) -> Iterator[str]:
    spans = defaultdict[str, list[tuple[float, float, str]]](list)
    for rollout_id, moves in rollouts.items():
        if entered := [move.at for move in moves if move.stage in _ACTIVE]:
            end = next((move.at for move in made(moves) if move.stage in ENDED), float("inf"))
            end = next((over for start, over in controls.get(moves[0].task, ()) if start == end), end)
            spans[moves[0].task].append((entered[0], end, rollout_id))
    for found in spans.values():
        for first, second in pairwise(sorted(found)):
            if second[0] < first[1]:
                yield f"{second[2]} entered shadow before {first[2]} ended"


def draw_problems(history: History) -> Iterator[str]:
    """Check every level: what had accrued by then, and what a promoted predecessor gave back."""
    stages = {rollout_id: moves[-1].stage for rollout_id, moves in by_rollout(history.moves).items()}
    by_task = defaultdict[str, list[Draw]](list)
    for found in sorted(history.draws, key=lambda found: found.at):
        by_task[found.task].append(found)
    rules = history.rules
    for draws in by_task.values():
        for position, found in enumerate(draws):
            earlier = draws[:position]
            allowed = draw(rules.yearly, rules.cycles, [(d.at, d.drawn) for d in earlier], found.at)
            if found.drawn * _NEARLY > allowed:
                yield f"{found.rollout_id} drew {found.drawn:.4g}, and {allowed:.4g} had accrued"
            was_promoted = bool(earlier) and stages.get(earlier[-1].rollout_id) == "promoted"
            returned = earlier[-1].alpha if was_promoted else 0.0
            if found.alpha * _NEARLY > min(found.drawn + returned, rules.yearly):
                parts = f"it drew {found.drawn:.4g}, and {returned:.4g} came back"
                yield f"{found.rollout_id} was tested at {found.alpha:.4g}, but {parts}"
    levels = {found.rollout_id: found.alpha for found in history.draws}
    for move in history.moves:
        if move.stage in ("shadow", "canary", "promoted") and move.evidence["alpha"] != levels.get(move.rollout_id):
            yield f"{move.rollout_id} was decided at {move.evidence['alpha']}, and drew {levels.get(move.rollout_id)}"
