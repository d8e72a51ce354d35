"""The judge: what the simulation's truth says of a run, independent of all evidence that the product had. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from tests.benchmarks.table import Grid, Measured
from tests.benchmarks.twelve_weeks.play import Played, Promotion, WeekSeen
from tests.benchmarks.twelve_weeks.stand_ins.engine import BASE
from tests.benchmarks.twelve_weeks.stand_ins.trainer import Candidate
from tests.benchmarks.twelve_weeks.world.models import Fault

MIN_GAIN = 0.05
MAX_GOLDEN_LOSS = 0.05
_UNDER_WAY = 2
"""Cycles that may not be over at the end of a run: one candidate is compared, and one waits for its turn."""
_SHOWN = 110


def measured(played: Played) -> list[Measured]:
    """Return the bars of a run, and what else there is to know of it."""
    last, cycles = played.weeks[-1], played.plan.weeks
    first = last.base if last.first is None else last.first
    planted = set(played.plan.faults.values())
    otherwise = played.ends.count("failed") - played.data_sets_stopped
    return [
        Measured("cycles that ran to an end", "cycles", len(played.ends), min_value=cycles - _UNDER_WAY),
        Measured("data sets that a gate stopped", "cycles", played.data_sets_stopped),
        Measured("cycles in which a step failed otherwise", "cycles", otherwise, max_value=0),
        Measured("promotions", "adapters", len(played.promotions), min_value=2),
        Measured("least true gain of a promotion", "accuracy", _least_gain(played.promotions), min_value=0.0),
        Measured("last adapter against week 0's, the base", "accuracy", last.primary - last.base, min_value=MIN_GAIN),
        Measured("last adapter against the first promoted", "accuracy", last.primary - first, min_value=MIN_GAIN),
        Measured("kinds of bad candidates that were judged", "kinds", len(stopped(played)), min_value=len(planted)),
        Measured("bad candidates promoted", "adapters", len(promoted_bad(played)), max_value=0),
        Measured("golden set: most lost against its best", "share", golden_loss(played), max_value=MAX_GOLDEN_LOSS),
        Measured("last week: users' answers right", "share", last.served),
        Measured("last week: an oracle's refit", "share", last.refit),
        Measured("labels that people gave", "labels", played.labels),
        Measured("time", "s", played.seconds),
    ]  # fmt: skip


def _least_gain(promotions: Sequence[Promotion]) -> float:
    return min((p.after - p.before for p in promotions), default=0.0)


def stopped(played: Played) -> set[Fault]:
    """Return the faults of which a candidate was stopped by evidence, not by a newer one that took its place."""
    return {c.fault for c in _bad(played) if c.end is not None and not c.was_replaced and c not in promoted_bad(played)}


def promoted_bad(played: Played) -> list[Candidate]:
    """Return the planted candidates that were promoted, whatever became of them afterwards."""
    promoted = {promotion.adapter for promotion in played.promotions}
    return [candidate for candidate in _bad(played) if candidate.adapter in promoted]


def _bad(played: Played) -> Iterable[Candidate]:
    return (candidate for candidate in played.candidates if candidate.fault is not None)


def golden_loss(played: Played) -> float:
    """Return the most that any week's serving adapter lost of the golden set against the best that ever served."""
    right = [week.golden for week in played.weeks if week.serving != BASE]
    lost = (best - now for best, now in zip(accumulate(right, max), right, strict=True))
    return max(lost, default=0) / played.golden_rows


def grids(played: Played) -> list[Grid]:
    """Return the tables of a run: its weeks, promotions and candidates."""
    return [
        Grid(
            "weeks, by the truth of each week's stream",
            ("week", "served", "serving at its end", "the first promoted", "base", "oracle's refit", "golden right"),
            [_week(week, played) for week in played.weeks],
        ),
        Grid(
            "promotions, by the truth of the stream of their week",
            ("week", "adapter", "replaced", "before", "after"),
            [
                (str(p.week), p.adapter, p.replaced, f"{p.before:.1%}", f"{p.after:.1%}")
                for p in played.promotions
            ],
        ),
        Grid(
            "candidates",
            ("cycle", "adapter", "trained on", "planted", "end", "in week", "why"),
            [_candidate(candidate) for candidate in played.candidates],
        ),
    ]  # fmt: skip


def _week(week: WeekSeen, played: Played) -> tuple[str, ...]:
    first = "" if week.first is None else f"{week.first:.1%}"
    right = f"{week.golden} of {played.golden_rows}"
    shares = (week.served, week.primary)
    return (str(week.week), *(f"{s:.1%}" for s in shares), first, f"{week.base:.1%}", f"{week.refit:.1%}", right)


def _candidate(candidate: Candidate) -> tuple[str, ...]:
    fault = "" if candidate.fault is None else candidate.fault.value
    end = "is compared" if candidate.end is None else candidate.end.value
    when = "" if candidate.end is None else str(candidate.ended)
    reason = candidate.reason.replace("|", "/").replace("\n", " ")
    why = reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN]}…"
    return str(candidate.week), candidate.adapter, f"{candidate.rows} rows", fault, end, when, why
