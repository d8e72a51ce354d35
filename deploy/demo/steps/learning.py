"""The cycle, followed on the console: failure modes, dataset, training, evaluation. Each shown as it arrives."""

from __future__ import annotations

from typing import Any

from deploy.demo.state import Turn
from deploy.demo.steps.cycle import CyclePage, event_of, follow, rejected_examples


class Stopped(Exception):
    """The candidate, or its data, did not pass. Not a breakdown: it is what the gates are for."""

    def __init__(self, by: str, evidence: str) -> None:
        super().__init__(f"{by}: {evidence}")
        self.by = by
        self.evidence = evidence


async def await_failures(turn: Turn) -> None:
    """Failure modes: what the model gets wrong, in groups."""
    with turn.show.step("failure modes", f"Cycle {turn.result.cycle_id}: failure modes from the suspects"):
        event = await _event(turn, "failures.clustered", 180.0, lambda page: None)
    turn.result.modes = event["modes"]
    turn.show.table(
        f"Failure modes: {event['suspects']} suspects, {event['noise']} in no mode",
        ("mode", "size", "share", "confidence", "the most typical one"),
        (
            (m["name"], m["size"], f"{m['share']:.0%}", _confidence(m["mean_confidence"]), m["exemplars"][0][:90])
            for m in sorted(event["modes"], key=lambda m: -m["size"])[:12]
        ),
    )


async def await_dataset(turn: Turn) -> None:
    """The dataset, with what was rejected and why."""
    with turn.show.step("dataset", "Dataset from the corrections: validated, deduplicated, split, gated"):
        event = await _event(turn, "datasets.built", 120.0, lambda page: None)
    reasons, examples = rejected_examples(event["uri"])
    turn.result.dataset, turn.result.rejected_examples = event, examples
    turn.result.rejected = dict(reasons) or {r["reason"]: r["count"] for r in event["rejected"]}
    turn.show.say(
        f"[bold]{event['train_examples']}[/] to train on, {event['eval_examples']} to judge by, "
        f"{sum(turn.result.rejected.values())} rejected ({event['dataset_id']})"
    )
    detail = {row["reason"]: row.get("detail", "") for row in examples}
    rows = [(reason, count, detail.get(reason, "")[:110]) for reason, count in turn.result.rejected.items()]
    if rows:
        turn.show.table("Rejected", ("reason", "rows", "for example"), rows)
    _show_gates(turn, "Gates of the dataset", event["gates"])


async def await_training(turn: Turn) -> None:
    """Training, with its progress."""
    with turn.show.step("training", f"Training: LoRA on {turn.spec.base_model}") as bar:

        def look(page: CyclePage) -> None:
            progress = page.progress or {}
            if progress.get("step") == "training":
                bar.update(progress["done"], progress["total"], progress.get("message", ""))
            else:
                bar.update(message="starting the job")

        event = await _event(turn, "adapters.trained", 300.0, look)
    turn.result.training = event
    turn.show.say(
        f"{event['adapter']}: {event['steps']} steps, loss {event['train_loss']:.3f}, {event['seconds']:.0f} s"
    )


async def await_evaluation(turn: Turn) -> None:
    """Candidate and production side by side. Raises Stopped if a gate is closed."""
    with turn.show.step("evaluation", "Evaluation: candidate and production on the same frozen questions") as bar:

        def look(page: CyclePage) -> None:
            progress = page.progress or {}
            if progress.get("step") == "evaluation":
                bar.update(progress["done"], progress["total"], progress.get("message", ""))

        event = await _event(turn, "adapters.evaluated", 300.0, look)
    turn.result.evaluation = event
    arms = (("production", event["production"]), ("candidate", event["candidate"]))
    turn.show.table(
        "Side by side",
        ("arm", "accuracy", "95 %", "macro F1", "failed", "p50"),
        (
            (
                f"{name} ({arm['adapter'] or 'base model'})", f"{arm['accuracy']['value']:.1%}",
                f"{arm['accuracy']['low']:.1%}–{arm['accuracy']['high']:.1%}", f"{arm['macro_f1']:.3f}",
                arm["failed"], f"{arm['latency_ms_p50']:.0f} ms",
            )
            for name, arm in arms
        ),
    )  # fmt: skip
    _show_gates(turn, "Gates of the evaluation", event["gates"])
    if event["verdict"] != "passed":
        closed = [gate for gate in event["gates"] if not gate["passed"]]
        raise Stopped(
            "evaluation gate " + ", ".join(gate["name"] for gate in closed),
            "; ".join(f"{g['name']} measured {_number(g['measured'])}, required {g['required']}" for g in closed),
        )


async def _event(turn: Turn, topic: str, seconds: float, look: Any) -> dict[str, Any]:
    """The cycle's event of `topic`. Raises Stopped where the cycle ended before it."""

    def watch(page: CyclePage) -> None:
        turn.check_background()
        look(page)

    late = turn.late(f"no {topic}", seconds)
    event, page = await follow(turn.console, turn.result.cycle_id, event_of(topic), turn.limit(seconds), watch, late)
    if event is None:
        raise stopped_by(page)
    return event


def stopped_by(page: CyclePage) -> Stopped:
    """Why a cycle that is over ended without what was waited for."""
    finished = page.last("cycles.finished") or {}
    return Stopped(f"cycle {finished.get('outcome', 'over')}", str(finished.get("reason", "no reason given")))


def _show_gates(turn: Turn, title: str, gates: list[dict[str, Any]]) -> None:
    if gates:
        turn.show.table(
            title,
            ("gate", "", "measured", "required", ""),
            (
                (
                    g["name"],
                    "passed" if g["passed"] else "CLOSED",
                    _number(g["measured"]),
                    g["required"],
                    g["detail"][:90],
                )
                for g in gates
            ),
        )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _confidence(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
