"""What a canary had served when it rose to more users, and whether its guards would have let it."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.rollouts.checks.history import History, Move, Request
from tests.chaos.rollouts.checks.wealth import binomial_mixture

RATIO = 1.5
"""A canary may fail so many times as often as the primary."""
_ENDS = 20.0
_WEIGHT, _OTHERS = 0.2, 0.2
"""Of the guard of failed requests, and the least that the three other guards and the rest add to the mean of all."""


def has_failed(request: Request) -> bool:
    return request.status >= 500 or request.status == 404


def canary_requests(history: History, move: Move) -> list[Request]:
    """Return the candidate's requests from the start of its canary until the move, as primary as well."""
    return [r for r in _requests(history, move) if _is_candidates(r, move)]


def users_since_step(history: History, canary: Move, move: Move) -> int:
    """Return how many users a canary had served from when it got its share of them until the move."""
    same = canary.rollout_id, canary.stage, canary.percent
    since = min(m.at for m in history.moves if (m.rollout_id, m.stage, m.percent) == same)
    return len({r.subject for r in canary_requests(history, move) if r.status < 400 and r.at >= since})


def guard_problems(history: History, canary: Move, move: Move) -> Iterator[str]:
    """Check what a move to more users says it had counted, and what its guards had to say of that.

    Which requests these were is not known, since a topic's partitions are read side by side: so the evidence is the
    least that as many failures can be. Their users are counted as few as they may be, and none of whose requests failed
    elsewhere, too; they are compared with all others with a failed request, at the canary's greatest share so far.
    """
    counted = [r for r in canary_requests(history, move) if has_failed(r) or r.status < 400]
    said = int(move.evidence["canary_requests"]), int(move.evidence["canary_errors"])
    possible = len(counted), sum(map(has_failed, counted))
    if said[0] > possible[0] or said[1] > possible[1]:
        yield f"it counts {_failures(*said)}, and of the canary's so far there are {_failures(*possible)}"
    late = history.rules.late_seconds
    early = [r for r in counted if r.at <= move.at - late]
    known = len(early), sum(map(has_failed, early))
    if said[0] < known[0] or said[1] < known[1]:
        yield f"it counts {_failures(*said)}, and {late:.0f} s before there were {_failures(*known)}"
    elsewhere = {r.subject for r in _requests(history, move) if has_failed(r) and not _is_candidates(r, move)}
    subjects = [r.subject for r in counted if has_failed(r)]
    not_one_each = len(subjects) - len(set(subjects) - elsewhere - {""})
    bad = max(0, said[1] - not_one_each)
    evidence = binomial_mixture(bad, bad + len(elsewhere), canary.percent / 100, RATIO)
    if _OTHERS + _WEIGHT * evidence >= _ENDS:
        yield (
            f"its guards were to end it: {bad} of the {bad + len(elsewhere)} users with a failed request were in it, "
            f"which had {canary.percent} % of users (evidence {evidence:.4g})"
        )


def _failures(requests: int, failed: int) -> str:
    return f"{requests} requests, {failed} of which failed"


def _requests(history: History, move: Move) -> list[Request]:
    """Return the task's requests from the start of the candidate's canary until the move."""
    starts = [m.at for m in history.moves if m.rollout_id == move.rollout_id and m.stage == "canary"]
    since = min(starts, default=move.at)
    return [r for r in history.requests if r.task == move.task and since <= r.at <= move.at]


def _is_candidates(request: Request, move: Move) -> bool:
    return request.variant in ("canary", "primary") and request.adapter == move.candidate
