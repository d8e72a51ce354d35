"""Every flag against the moves, and against what the engines served when it was read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.rollouts.checks.history import EngineState, Flags, History, Move, Rules
from tests.chaos.rollouts.checks.moves import ENDED, by_rollout, controls, goes_back, made

PROBES = 5
"""As many prompts prove an adapter."""
NEW_ENGINE_SECONDS = 10.0
"""An engine that was started less long before a flag moved may have been started after the proof."""


@dataclass(frozen=True)
class Serving:
    """Who serves everyone since a moment."""

    since: float
    adapter: str | None


def served(moves: Sequence[Move]) -> dict[str, list[Serving]]:
    """Return by task who was to serve everyone, move by move. A promotion that was taken back serves no more."""
    found = defaultdict[str, list[Serving]](list)
    stages = dict[str, str]()
    for move in sorted(moves, key=lambda move: (move.at, move.version)):
        timeline = found[move.task]
        was_promoted = stages.get(move.rollout_id) == "promoted"
        stages[move.rollout_id] = move.stage
        if move.stage == "promoted" and not was_promoted:
            timeline.append(Serving(move.at, move.candidate))
        elif move.stage != "promoted" and was_promoted:
            timeline.append(Serving(move.at, timeline[-2].adapter if len(timeline) > 1 else None))
    return found


def serving_at(timeline: Sequence[Serving], at: float) -> str | None:
    return next((entry.adapter for entry in reversed(timeline) if entry.since <= at), None)


def flag_problems(history: History) -> Iterator[str]:
    """Check every sample, and that the last one is what the moves came to."""
    timelines, canaries, rules = served(history.moves), _canaries(history.moves), history.rules
    with_control = controls(history)
    found = dict[str, int]()
    for before, sample in pairwise([None, *history.samples]):
        assert sample is not None
        for task, flags in sample.flags.items():
            problems = [*_behind(timelines[task], canaries, flags, sample.at, task, rules.late_seconds)]
            problems += _control_behind(with_control.get(task, ()), flags, sample.at, task, rules)
            was = before.flags.get(task) if before is not None else None
            problems += _unproved(flags, was, sample.engines, sample.at, rules.reloading_seconds)
            for problem in problems:
                found[problem] = found.get(problem, 0) + 1
    yield from (f"{problem} ({count} times)" for problem, count in found.items())
    if history.samples:
        end = history.samples[-1].at  # A candidate may have ended after it, in a run that patience ended.
        last = [moves[-1] for moves in by_rollout(history.moves).values()]
        running = {move.task for move in last if move.stage not in ENDED or move.at > end}
        for task, flags in history.samples[-1].flags.items():
            if task not in running and flags != (
                wanted := Flags(serving_at(timelines[task], float("inf")), None, False)
            ):
                yield f"{task}: in the end its flags are {flags}, not {wanted}"


def _canaries(moves: Sequence[Move]) -> dict[str, tuple[float, float]]:
    """Return for each candidate from when to when it was to serve a canary."""
    found = {}
    for of_rollout in map(made, by_rollout(moves).values()):
        starts = [move.at for move in of_rollout if move.stage == "canary"]
        ends = [move.at for move in of_rollout if move.stage in ENDED]
        if starts:
            found[of_rollout[0].candidate] = min(starts), min(ends, default=float("inf"))
    return found


def _behind(
    timeline: Sequence[Serving], canaries: Mapping[str, tuple[float, float]], flags: Flags, at: float, task: str,
    late: float,
) -> Iterator[str]:  # fmt: skip
    now, before = serving_at(timeline, at), serving_at(timeline, at - late)
    recent = {entry.adapter for entry in timeline if at - late <= entry.since <= at}
    if flags.primary not in {now, before, *recent}:
        yield f"{task}: primary names {flags.primary}, and {now} serves by its history"
    if flags.canary is not None:
        start, end = canaries.get(flags.canary, (float("inf"), float("inf")))
        if not start <= at <= end + late:
            yield f"{task}: canary names {flags.canary}, which has no canary by its history"


def _control_behind(
    spans: Sequence[tuple[float, float]], flags: Flags, at: float, task: str, rules: Rules
) -> Iterator[str]:
    """Some users stay on the adapter before, so many as they should, while a promotion has a control, and no longer."""
    late = rules.late_seconds
    if flags.control is None:
        if any(start + late < at < end for start, end in spans):
            yield f"{task}: control is off, and a promotion has one by its history"
    elif not any(start <= at <= end + late for start, end in spans):
        yield f"{task}: control is on, and no promotion has one by its history"
    elif flags.control != rules.control_percent:
        yield f"{task}: control has {flags.control} % of users, not {rules.control_percent}"


def _unproved(
    flags: Flags, was: Flags | None, engines: Mapping[str, EngineState], at: float, reloading: float
) -> Iterator[str]:
    """Every engine in service has proved what a flag names: when the flag moves, and ever after."""
    for name in ("primary", "canary"):
        adapter = getattr(flags, name)
        if adapter is None:
            continue
        is_new = was is None or getattr(was, name) != adapter
        pause = NEW_ENGINE_SECONDS if is_new else reloading
        for url, engine in engines.items():
            if at - engine.started >= pause and engine.probes.get(adapter, 0) < PROBES:
                loaded = "not proved" if adapter in engine.probes else "not loaded"
                yield f"{name} {'came to name' if is_new else 'names'} {adapter}, which is {loaded} at {url}"


def change_problems(history: History) -> Iterator[str]:
    """Every move was told to all, with who serves; and every pair was made with whoever served."""
    timelines = served(history.moves)
    told = {(change.rollout_id, change.stage, change.at) for change in history.changes}
    rollouts = by_rollout(history.moves)
    tasks = {rollout_id: moves[0].task for rollout_id, moves in rollouts.items()}
    for moves in rollouts.values():
        for move, after in pairwise([*moves, None]):
            assert move is not None
            taken_back = after is not None and (
                goes_back(move, after) or (after.stage in ENDED and after.stage != move.stage)
            )
            if (move.rollout_id, move.stage, move.at) not in told and not taken_back:
                yield f"{move.candidate}: that it is {move.stage} was never published"
    for change in history.changes:
        if change.rollout_id in tasks and change.stage != "queued":
            serves = serving_at(timelines[tasks[change.rollout_id]], change.at)
            if change.primary != serves:
                yield f"{change.rollout_id}, {change.stage}: it says that {change.primary} serves, not {serves}"
    opponents = {c.rollout_id: c.primary for c in history.changes if c.stage == "shadow"}
    wrong = {p.rollout_id for p in history.pairs if p.primary != opponents.get(p.rollout_id, p.primary)}
    yield from (f"{rollout_id} was compared with another adapter than serves" for rollout_id in sorted(wrong))
