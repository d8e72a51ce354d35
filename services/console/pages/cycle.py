"""Renders a cycle's events as the timeline and cards of its page. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, get_args

from schemas.base import Gate
from schemas.cycles import Step
from services.console.history import Losses
from services.console.pages.layout import Markup, duration, figures, link, muted, number, percent, table, tag
from services.console.pages.losses import loss_plots
from services.console.pages.rollout import rollout_parts
from services.console.reports import evaluation_page, report_page
from shared.report.evaluation import evaluated_blocks, gates_table
from shared.report.html import fragment

Json = dict[str, Any]
"""A record of `CycleHistory.events`, an event, or a part of one."""
RESULT_OF: dict[Step, str] = {
    "failures": "failures.clustered.v1",
    "dataset": "datasets.built.v1",
    "training": "adapters.trained.v1",
    "evaluation": "adapters.evaluated.v1",
    "rollout": "cycles.finished.v1",
}
MAX_MODES = 12
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


def outcome_tag(outcome: str | None) -> Markup:
    """Return a pill with the outcome of a cycle."""
    if outcome is None:
        return tag("running", "go")
    return tag(outcome, _OUTCOME_KINDS.get(outcome, "bad"))


def sections(records: Sequence[Json], losses: Sequence[Losses] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield the title and parts of each card, in the order of the steps. `losses`: of the cycle's training so far."""
    for topic, (title, render) in _CARDS.items():
        if topic == "steps.failed.v1" and (skipped := [e for e in _events(records, topic) if e.get("skipped")]):
            yield "Nothing to learn from yet", [muted(skipped[-1]["reason"]), muted(skipped[-1]["way_out"])]
        events = [event for event in _events(records, topic) if not event.get("skipped")]
        plots = loss_plots(losses) if topic == "adapters.trained.v1" else []
        if events or plots:
            yield title, [*(render(events) if events else []), *plots]


def _events(records: Sequence[Json], topic: str) -> list[Json]:
    return [record["event"] for record in records if record["topic"] == topic]


def _outcome_card(events: list[Json]) -> list[str]:
    event = events[-1]
    summary = figures(outcome=event["outcome"], took=duration(event["seconds"]), adapter=event["adapter"] or "–")
    return [summary, muted(event["reason"])]


def _failure_modes_card(events: list[Json]) -> list[str]:
    event = events[-1]
    rows = []
    for mode in event["modes"][:MAX_MODES]:
        new = f" {tag('new', 'go')}" if mode["is_new"] else ""
        examples = "".join(f"<div class='muted small'>“{escape(text[:160])}”</div>" for text in mode["exemplars"][:3])
        name = Markup(f"<b>{escape(mode['name'])}</b>{new}{examples}")
        rows.append((name, mode["size"], percent(mode["share"]), percent(mode["mean_confidence"])))
    modes = len(event["modes"]) + event.get("modes_left_out", 0)
    summary = figures(suspects=number(event["suspects"]), failure_modes=number(modes), in_no_mode=event["noise"])
    return [summary, table(("Failure mode", "Size", "Share", "Confidence"), rows) if rows else muted("No mode yet.")]


def _dataset_card(events: list[Json]) -> list[str]:
    event = events[-1]
    summary = figures(
        training_examples=number(event["train_examples"]),
        held_out=number(event["eval_examples"]),
        left_out=number(sum(r["count"] for r in event["left_out"])),
    )
    rows = [(r["fate"].replace("_", " "), r["reason"].replace("_", " "), r["count"]) for r in event["left_out"]]
    left_out = table(("Left out", "Because", "Rows"), rows) if rows else ""
    parent = f", which follows {event['parent']}" if event.get("parent") else ", the task's first version"
    name = muted(event["dataset_id"] + parent)
    gates = fragment([gates_table(map(Gate.model_validate, event["gates"]))])
    return [summary, name, f"<p>{_inspection_link(event)}</p>", gates, left_out]


def _inspection_link(event: Json) -> Markup:
    return link(report_page(event["cycle_id"]), "The whole inspection, with plots and examples")


def _training_card(events: list[Json]) -> list[str]:
    event = events[-1]
    summary = figures(
        method=event["method"] + (f", rank {event['rank']}" if event["rank"] else ""),
        steps=number(event["steps"]),
        training_loss=number(event["train_loss"], 3),
        took=duration(event["seconds"]),
    )
    return [summary, muted(event["adapter"])]


def _evaluation_card(events: list[Json]) -> list[str]:
    event = events[-1]
    has_page = event.get("report") and event.get("cycle_id")
    page = link(evaluation_page(event["cycle_id"]), "The whole evaluation, with plots") if has_page else ""
    return [fragment(evaluated_blocks(event)), f"<p>{page}</p>"]


def _problems_card(events: list[Json]) -> list[str]:
    rows = [(e["step"], e["service"], e["reason"], e["way_out"]) for e in events]
    reports = [f"<p>{_inspection_link(e)}</p>" for e in events if e.get("report")]
    return [table(("Step", "Reported by", "Problem", "Way out"), rows), *reports]


_OUTCOME_KINDS = {"promoted": "good", "inconclusive": "open", "skipped": ""}
_CARDS: dict[str, tuple[str, Callable[[list[Json]], list[str]]]] = {
    "cycles.finished.v1": ("Outcome", _outcome_card),
    "steps.failed.v1": ("Problems", _problems_card),
    "failures.clustered.v1": ("Failure modes", _failure_modes_card),
    "datasets.built.v1": ("Dataset", _dataset_card),
    "adapters.trained.v1": ("Training", _training_card),
    "adapters.evaluated.v1": ("Evaluation", _evaluation_card),
    "rollouts.changed.v1": ("Rollout", rollout_parts),
}
