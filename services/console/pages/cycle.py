"""Renders a cycle's events as the timeline and cards of its page. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, get_args

from schemas.base import Gate
from schemas.cycles import Step
from services.console.history import Losses
from services.console.reports import evaluation_page, report_page
from shared.report.blocks import Block, Figures, Link, Table, Tag, Text, Tone
from shared.report.evaluation import evaluated_blocks, gates_table
from shared.report.learning import failure_blocks, loss_plot
from shared.report.rollout import rollout_blocks
from shared.report.written import duration, number

Json = dict[str, Any]
"""A record of `CycleHistory.events`, an event, or a part of one."""
RESULT_OF: dict[Step, str] = {
    "failures": "failures.clustered.v1",
    "dataset": "datasets.built.v1",
    "training": "adapters.trained.v1",
    "evaluation": "adapters.evaluated.v1",
    "rollout": "cycles.finished.v1",
}
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class StepState:
    """One step of the timeline. `state`: done, go (running), bad (failed) or empty (not started)."""

    step: Step
    state: str
    note: str


def timeline(records: Sequence[Json], now: datetime, progress: Json | None = None) -> list[StepState]:
    """Return the state of every step of a cycle. A step that the scheduler reported as late is still running, and late
    until it progresses: `progress` is the cycle's newest; a rollout's are its changes.
    """
    first_at = {record["topic"]: record["occurred_at"] for record in reversed(records)}
    outcome = outcome_of(records)
    failures = _events(records, "steps.failed.v1")
    progressed = {} if progress is None else {progress["step"]: datetime.fromisoformat(progress["occurred_at"])}
    if moves := [record["occurred_at"] for record in records if record["topic"] == "rollouts.changed.v1"]:
        progressed["rollout"] = max(moves)
    reports = [r for r in records if r["topic"] == "steps.failed.v1" and r["event"]["service"] == "scheduler"]
    late = {r["event"]["step"] for r in reports if r["occurred_at"] >= progressed.get(r["event"]["step"], _NEVER)}
    failed = {event["step"]: event.get("skipped", False) for event in failures if event["service"] != "scheduler"}
    has_rollout = bool(_events(records, "rollouts.changed.v1"))
    states: list[StepState] = []
    since = records[0]["occurred_at"]
    running = True
    for step in get_args(Step):
        done = first_at.get(RESULT_OF[step])
        if step in failed:
            states.append(StepState(step, "", "skipped") if failed[step] else StepState(step, "bad", "failed"))
            running = False
        elif done is not None and running and (step != "rollout" or has_rollout):
            kind = "done" if step != "rollout" or outcome in (None, "promoted") else "bad"
            states.append(StepState(step, kind, duration((done - since).total_seconds())))
            since = done
        elif running and outcome is None:
            note = f"{'late, ' if step in late else ''}{duration((now - since).total_seconds())}"
            states.append(StepState(step, "go", note))
            running = False
        else:
            states.append(StepState(step, "", ""))
    return states


def outcome_of(records: Sequence[Json]) -> str | None:
    """Return the outcome of a cycle, or None while it runs."""
    return next((event["outcome"] for event in _events(records, "cycles.finished.v1")), None)


def outcome_tag(outcome: str | None) -> Tag:
    """Return a pill with the outcome of a cycle."""
    return Tag("running", "go") if outcome is None else Tag(outcome, _OUTCOME_TONES.get(outcome, "bad"))


def sections(records: Sequence[Json], losses: Sequence[Losses] = ()) -> Iterator[tuple[str, list[Block]]]:
    """Yield the title and blocks of each card, in the order of the steps. `losses`: of the cycle's training so far."""
    for topic, (title, blocks_of) in _CARDS.items():
        if topic == "steps.failed.v1" and (skipped := [e for e in _events(records, topic) if e.get("skipped")]):
            yield (
                "Nothing to learn from yet",
                [Text(skipped[-1]["reason"], "note"), Text(skipped[-1]["way_out"], "note")],
            )
        events = [event for event in _events(records, topic) if not event.get("skipped")]
        plots = _loss_plots(losses) if topic == "adapters.trained.v1" else []
        if events or plots:
            yield title, [*(blocks_of(events) if events else []), *plots]


def _events(records: Sequence[Json], topic: str) -> list[Json]:
    return [record["event"] for record in records if record["topic"] == topic]


def _outcome_blocks(events: list[Json]) -> list[Block]:
    event = events[-1]
    figures = {"outcome": event["outcome"], "took": duration(event["seconds"]), "adapter": event["adapter"]}
    return [Figures(figures), Text(event["reason"], "note")]


def _dataset_blocks(events: list[Json]) -> list[Block]:
    event = events[-1]
    rows = [(r["fate"].replace("_", " "), r["reason"].replace("_", " "), r["count"]) for r in event["left_out"]]
    figures = {
        "training examples": event["train_examples"],
        "held out": event["eval_examples"],
        "left out": sum(count for *_, count in rows),
    }
    parent = f", which follows {event['parent']}" if event.get("parent") else ", the task's first version"
    return [
        Figures(figures),
        Text(event["dataset_id"] + parent, "note"),
        _inspection_link(event),
        gates_table(map(Gate.model_validate, event["gates"])),
        *([Table(("left out", "because", "rows"), rows)] if rows else []),
    ]


def _inspection_link(event: Json) -> Link:
    return Link("The whole inspection, with plots and examples", report_page(event["cycle_id"]))


def _training_blocks(events: list[Json]) -> list[Block]:
    event = events[-1]
    figures = {
        "method": event["method"] + (f", rank {event['rank']}" if event["rank"] else ""),
        "steps": event["steps"],
        "training loss": number(event["train_loss"], 3),
        "took": duration(event["seconds"]),
    }
    return [Figures(figures), Text(event["adapter"], "note")]


def _loss_plots(losses: Sequence[Losses]) -> list[Block]:
    """A plot for each stage of a training."""
    stages = [list(stage) for _, stage in groupby(losses, key=lambda at: at.steps)]
    return [
        loss_plot(
            {
                "loss": [(at.step, at.loss) for at in stage if at.loss is not None],
                "validation": [(at.step, at.validation) for at in stage if at.validation is not None],
            }
        )
        for stage in stages
    ]


def _evaluation_blocks(events: list[Json]) -> list[Block]:
    event = events[-1]
    page = Link("The whole evaluation, with plots", evaluation_page(event["cycle_id"] or ""))
    verdict, *blocks = evaluated_blocks(event)
    return [verdict, *([page] if event.get("report") and event["cycle_id"] else []), *blocks]


def _problem_blocks(events: list[Json]) -> list[Block]:
    rows = [(e["step"], e["service"], e["reason"], e["way_out"]) for e in events]
    reports = [_inspection_link(e) for e in events if e.get("report")]
    return [Table(("step", "reported by", "problem", "way out"), rows), *reports]


_OUTCOME_TONES: dict[str, Tone] = {"promoted": "good", "inconclusive": "open", "skipped": ""}
_CARDS: dict[str, tuple[str, Callable[[list[Json]], list[Block]]]] = {
    "cycles.finished.v1": ("Outcome", _outcome_blocks),
    "steps.failed.v1": ("Problems", _problem_blocks),
    "failures.clustered.v1": ("Failure modes", lambda events: failure_blocks(events[-1])),
    "datasets.built.v1": ("Dataset", _dataset_blocks),
    "adapters.trained.v1": ("Training", _training_blocks),
    "adapters.evaluated.v1": ("Evaluation", _evaluation_blocks),
    "rollouts.changed.v1": ("Rollout", rollout_blocks),
}
