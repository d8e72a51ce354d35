"""A cycle's facts as pieces of a page. Pure: facts in, markup out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any, get_args

from schemas.cycles import Step
from services.console.pages.layout import Markup, duration, facts, moment, number, percent, soft, table, tag

Fact = dict[str, Any]
RESULT_OF: dict[Step, str] = {
    "failures": "failures.clustered.v1",
    "dataset": "datasets.built.v1",
    "training": "adapters.trained.v1",
    "evaluation": "adapters.evaluated.v1",
    "rollout": "cycles.finished.v1",
}
MOST_MODES = 12


@dataclass(frozen=True)
class StepState:
    """One step of the timeline: state is done, go (running), bad (failed) or empty (not yet)."""

    step: Step
    state: str
    note: str


def timeline(steps: Sequence[Fact], now: datetime) -> list[StepState]:
    """Where the cycle stands. A step that was reported late is still running."""
    at = {fact["topic"]: fact["occurred_at"] for fact in reversed(steps)}
    finished = next((f["event"] for f in steps if f["topic"] == "cycles.finished.v1"), None)
    failed = [f["event"] for f in steps if f["topic"] == "steps.failed.v1"]
    late = {event["step"] for event in failed if event["service"] == "scheduler"}
    broken = {event["step"] for event in failed if event["service"] != "scheduler"}
    states: list[StepState] = []
    since = steps[0]["occurred_at"]
    running = True
    for step in get_args(Step):
        done = at.get(RESULT_OF[step])
        if step in broken:
            states.append(StepState(step, "bad", "failed"))
            running = False
        elif done is not None and running and not (step == "rollout" and not _rolled(steps)):
            kind = "done" if step != "rollout" or finished is None or finished["outcome"] == "promoted" else "bad"
            states.append(StepState(step, kind, duration((done - since).total_seconds())))
            since = done
        elif running and finished is None:
            note = f"{'late, ' if step in late else ''}{duration((now - since).total_seconds())}"
            states.append(StepState(step, "go", note))
            running = False
        else:
            states.append(StepState(step, "", ""))
    return states


def outcome(steps: Sequence[Fact]) -> Markup:
    """A pill that says how the cycle ended."""
    finished = next((f["event"] for f in steps if f["topic"] == "cycles.finished.v1"), None)
    if finished is None:
        return tag("running", "go")
    return tag(finished["outcome"], "good" if finished["outcome"] == "promoted" else "bad")


def sections(steps: Sequence[Fact]) -> Iterator[tuple[str, list[str]]]:
    """Title and parts of each card, in the order of the steps."""
    for topic, (title, view) in _VIEWS.items():
        found = [fact["event"] for fact in steps if fact["topic"] == topic]
        if found:
            yield title, view(found)


def _rolled(steps: Sequence[Fact]) -> bool:
    return any(fact["topic"] == "rollouts.changed.v1" for fact in steps)


def _finished(events: list[Fact]) -> list[str]:
    event = events[-1]
    words = facts(outcome=event["outcome"], took=duration(event["seconds"]), adapter=event["adapter"] or "–")
    return [words, soft(event["reason"])]


def _failures(events: list[Fact]) -> list[str]:
    event = events[-1]
    rows = []
    for mode in event["modes"][:MOST_MODES]:
        new = f" {tag('new', 'go')}" if mode["is_new"] else ""
        examples = "".join(f"<div class='soft small'>“{escape(text[:160])}”</div>" for text in mode["exemplars"][:3])
        name = Markup(f"<b>{escape(mode['name'])}</b>{new}{examples}")
        rows.append((name, mode["size"], percent(mode["share"]), percent(mode["mean_confidence"])))
    words = facts(suspects=number(event["suspects"]), failure_modes=len(event["modes"]), in_no_mode=event["noise"])
    return [words, table(("Failure mode", "Size", "Share", "Confidence"), rows) if rows else soft("No mode yet.")]


def _dataset(events: list[Fact]) -> list[str]:
    event = events[-1]
    words = facts(
        training_examples=number(event["train_examples"]),
        held_out=number(event["eval_examples"]),
        rejected=number(sum(r["count"] for r in event["rejected"])),
    )
    rejected = table(("Rejected because", "Rows"), [(r["reason"], r["count"]) for r in event["rejected"]])
    return [words, rejected if event["rejected"] else "", _gates(event["gates"])]


def _training(events: list[Fact]) -> list[str]:
    event = events[-1]
    words = facts(
        method=f"{event['method']}, rank {event['rank']}",
        steps=number(event["steps"]),
        training_loss=number(event["train_loss"], 3),
        took=duration(event["seconds"]),
    )
    return [words, soft(event["adapter"])]


def _evaluation(events: list[Fact]) -> list[str]:
    event = events[-1]
    arms = (event["candidate"], event["production"])

    def row(name: str, value: Callable[[Fact], str]) -> tuple[str, ...]:
        return (name, *(value(arm) for arm in arms))

    def accuracy(arm: Fact) -> str:
        a = arm["accuracy"]
        return f"{percent(a['value'])}  ({percent(a['low'])} to {percent(a['high'])}, n = {a['n']})"

    rows = [
        row("Adapter", lambda arm: arm["adapter"] or "base model"),
        row("Accuracy", accuracy),
        row("Macro F1", lambda arm: percent(arm["macro_f1"])),
        row("Failed requests", lambda arm: number(arm["failed"])),
        row("Latency, median", lambda arm: f"{number(arm['latency_ms_p50'], 0)} ms"),
    ]
    golden = f"Golden set: {event['golden_gained']} gained, {event['golden_lost']} lost, of {event['golden_total']}."
    side_by_side = table(("", "Candidate", "Production"), rows)
    return [side_by_side, soft(golden), _gates(event["gates"]), _classes(event)]


def _classes(event: Fact) -> str:
    production = {score["label"]: score for score in event["production"]["classes"]}
    rows = [
        (s["label"], percent(s["f1"]), percent(production.get(s["label"], {}).get("f1")), s["support"])
        for s in sorted(event["candidate"]["classes"], key=lambda s: float(s["f1"]))
    ]
    body = table(("Label, worst first", "F1 candidate", "F1 production", "Rows"), rows)
    return f"<details><summary class='small soft'>By label</summary>{body}</details>" if rows else ""


def _rollout(events: list[Fact]) -> list[str]:
    last = events[-1]["evidence"]
    words = facts(
        wealth=number(last["wealth"]),
        needed=number(1 / last["alpha"], 0),
        won=last["wins"],
        tied=last["ties"],
        lost=last["losses"],
        waiting_for_a_label=last["pending"],
    )
    rows = [
        (moment(e["occurred_at"]), tag(e["stage"], _STAGES.get(e["stage"], "")), number(e["evidence"]["wealth"]),
         e["primary_adapter"] or "base model", e["reason"])
        for e in events
    ]  # fmt: skip
    return [words, table(("When", "Stage", "Wealth", "Serves", "Why"), rows)]


def _failed(events: list[Fact]) -> list[str]:
    rows = [(e["step"], e["service"], e["reason"], e["way_out"]) for e in events]
    return [table(("Step", "Says", "What", "Way out"), rows)]


def _gates(gates: Sequence[Fact]) -> str:
    if not gates:
        return ""
    rows = [
        (g["name"], tag("passed", "good") if g["passed"] else tag("failed", "bad"), number(g["measured"], 3),
         g["required"], g["detail"])
        for g in gates
    ]  # fmt: skip
    return table(("Gate", "", "Measured", "Required", ""), rows)


_STAGES = {"shadow": "go", "canary": "go", "promoted": "good", "rejected": "bad", "rolled_back": "bad"}
_VIEWS: dict[str, tuple[str, Callable[[list[Fact]], list[str]]]] = {
    "cycles.finished.v1": ("Outcome", _finished),
    "steps.failed.v1": ("Trouble", _failed),
    "failures.clustered.v1": ("Failure modes", _failures),
    "datasets.built.v1": ("Dataset", _dataset),
    "adapters.trained.v1": ("Training", _training),
    "adapters.evaluated.v1": ("Evaluation", _evaluation),
    "rollouts.changed.v1": ("Rollout", _rollout),
}
