"""The learning cycle, followed on the console: failure modes, dataset, training, evaluation."""

from __future__ import annotations

from typing import Any

from deploy.demo.errors import CandidateStopped, CycleStepFailed
from deploy.demo.report.approaches import COLUMNS, approach_rows, basis
from deploy.demo.state import LoopContext
from deploy.demo.steps.cycle import CyclePage, OnPoll, event_of, follow
from deploy.demo.steps.inspection import show_inspection
from deploy.demo.terminal import StepProgress
from schemas.base import Gate
from schemas.evaluation import EVALUATION_PAGE
from schemas.task_settings import Method
from shared.grading.adversarial_table import COLUMNS as ADVERSARIAL_COLUMNS
from shared.grading.adversarial_table import NOTE, adversarial_finding, adversarial_rows


async def learn(loop: LoopContext) -> None:
    """Start a cycle and follow it to its verdict. Raises CandidateStopped where a gate stops it."""
    loop.result.cycle.cycle_id = await loop.clients.scheduler.start_cycle()
    try:
        await await_failures(loop)
        await await_dataset(loop)
    except CycleStepFailed as failed:
        if failed.report is None:
            raise
        await show_inspection(loop, failed.report)
        raise CandidateStopped("the data set's inspection", failed.reason) from failed
    await await_training(loop)
    await await_evaluation(loop)


async def await_failures(loop: LoopContext) -> None:
    """Wait for the failure modes: groups of what the model gets wrong."""
    cycle = loop.result.cycle
    with loop.terminal.step("failure modes", f"Cycle {cycle.cycle_id}: failure modes from the suspects"):
        event = await _event(loop, "failures.clustered", 180.0)
    cycle.modes = event["modes"]
    loop.terminal.table(
        f"Failure modes: {event['suspects']} suspects, {event['noise']} in no mode",
        ("mode", "size", "share", "confidence", "most typical example"),
        (
            (m["name"], m["size"], f"{m['share']:.0%}", _number(m["mean_confidence"], ".3f"), m["exemplars"][0][:90])
            for m in sorted(cycle.modes, key=lambda mode: -mode["size"])[:12]
        ),
    )


async def await_dataset(loop: LoopContext) -> dict[str, Any]:
    """Wait for the dataset, and show its inspection. Returns its event."""
    with loop.terminal.step(
        "dataset", "Dataset from the corrections: validated, deduplicated, split, gated"
    ) as progress:
        event = await _event(loop, "datasets.built", 180.0, _show_progress_of("dataset", progress))
    loop.result.cycle.dataset = event
    loop.terminal.say(
        (f"{event['train_examples']}", "bold"),
        f" examples for training, {event['eval_examples']} for evaluation ({event['dataset_id']})",
    )
    await show_inspection(loop, event["uri"])
    return event


METHOD_NAMES = {
    Method.LORA: "LoRA", Method.QLORA: "QLoRA", Method.FULL: "full fine-tuning", Method.FUSION: "fusion of adapters",
}  # fmt: skip


async def await_training(loop: LoopContext) -> None:
    """Wait for the trained adapter or model, with the job's progress."""
    task = loop.setup.task
    with loop.terminal.step(
        "training", f"Training: {METHOD_NAMES[task.training.method]} on {task.base_model}"
    ) as progress:
        event = await _event(loop, "adapters.trained", 300.0, _show_progress_of("training", progress))
    loop.result.cycle.training = event
    loop.terminal.say(
        f"{event['adapter']}: {event['steps']} steps, loss {event['train_loss']:.3f}, {event['seconds']:.0f} s"
    )


async def await_evaluation(loop: LoopContext) -> None:
    """Wait for the evaluation of candidate and production. Raises CandidateStopped if a gate fails."""
    title = "Evaluation: candidate and production on the same frozen questions"
    with loop.terminal.step("evaluation", title) as progress:
        event = await _event(loop, "adapters.evaluated", 300.0, _show_progress_of("evaluation", progress))
    loop.result.cycle.evaluation = event
    await _show_headline(loop, event)
    loop.terminal.table(
        "Side by side",
        ("arm", "accuracy", "95 %", "macro F1", "failed", "p50 / p95"),
        (
            (
                f"{name} ({arm['adapter'] or 'base model'})", f"{arm['accuracy']['value']:.1%}",
                f"{arm['accuracy']['low']:.1%}–{arm['accuracy']['high']:.1%}", f"{arm['macro_f1']:.3f}",
                arm["failed"], f"{arm['latency_ms_p50']:.0f} / {arm.get('latency_ms_p95', 0.0):.0f} ms",
            )
            for name, arm in (("production", event["production"]), ("candidate", event["candidate"]))
        ),
    )  # fmt: skip
    _show_texts(loop, event)
    _show_approaches(loop)
    _show_adversarial(loop)
    _show_gates(loop, "Gates of the evaluation", event["gates"])
    if event["verdict"] == "failed":
        failed = [gate for gate in event["gates"] if not gate["passed"]]
        raise CandidateStopped(
            "evaluation gate " + ", ".join(gate["name"] for gate in failed),
            "; ".join(f"{g['name']} measured {_number(g['measured'])}, required {g['required']}" for g in failed),
        )


async def _show_headline(loop: LoopContext, event: dict[str, Any]) -> None:
    """Say the verdict in a sentence and where its page is, and remember the page for the report."""
    if event.get("headline"):
        loop.terminal.say((event["headline"], "bold"))
    folder = await loop.fetch(event["report"]) if event.get("report") else None
    if folder is not None and (folder / EVALUATION_PAGE).is_file():
        loop.result.cycle.evaluation_page = folder / EVALUATION_PAGE
        loop.terminal.say(f"The evaluation as a page: {folder / EVALUATION_PAGE}")


def _show_texts(loop: LoopContext, event: dict[str, Any]) -> None:
    """Show a generation's scores by every metric."""
    if texts := event.get("texts"):
        loop.terminal.table(
            "Generated text",
            ("metric", "production", "candidate", "difference (95 %)", ""),
            (
                (
                    row["metric"] + (" (gates)" if row["gates"] else ""), f"{row['production']['value']:.3f}",
                    f"{row['candidate']['value']:.3f}", f"{row['difference']['value']:+.3f} "
                    f"({row['difference']['low']:+.3f} to {row['difference']['high']:+.3f})",
                    row["difference"]["finding"].replace("_", " "),
                )
                for row in texts
            ),
        )  # fmt: skip


def stopped_by(page: CyclePage) -> CandidateStopped:
    """Make the error for a cycle that is over without the event that was waited for."""
    finished = page.last("cycles.finished") or {}
    return CandidateStopped(f"cycle {finished.get('outcome', 'over')}", str(finished.get("reason", "no reason given")))


async def _event(loop: LoopContext, topic: str, seconds: float, on_poll: OnPoll = lambda page: None) -> dict[str, Any]:
    """Wait for the cycle's event of `topic`. Raises CandidateStopped if the cycle ends before it."""

    def check(page: CyclePage) -> None:
        loop.check_background()
        on_poll(page)

    console, cycle_id = loop.clients.console, loop.result.cycle.cycle_id
    timeout = loop.timeout(f"no {topic}", seconds)
    event, page = await follow(console, cycle_id, event_of(topic), loop.limit(seconds), check, timeout)
    if event is None:
        raise stopped_by(page)
    return event


def _show_progress_of(step: str, progress: StepProgress) -> OnPoll:
    def show(page: CyclePage) -> None:
        reported = page.progress or {}
        if reported.get("step") == step:
            progress.update(reported["done"], reported["total"], reported.get("message", ""))
        else:
            progress.update(message="starting the job")

    return show


def _show_approaches(loop: LoopContext) -> None:
    """Show the adapter beside cheap rivals, and what that says: the most important sentence first."""
    if (table := loop.result.cycle.approaches) is None:
        return
    for finding in table.findings:
        loop.terminal.say(finding)
    loop.terminal.table("Approaches: the same training set, the same held-out rows", COLUMNS, approach_rows(table))
    loop.terminal.say((basis(table), "dim"))


def _show_adversarial(loop: LoopContext) -> None:
    """Show what changed, injected and foreign inputs do to both arms."""
    if (report := loop.result.cycle.adversarial) is None:
        return
    loop.terminal.table("Inputs that mislead, made from held-out rows", ADVERSARIAL_COLUMNS, adversarial_rows(report))
    loop.terminal.say(adversarial_finding(report))
    loop.terminal.say((NOTE, "dim"))


def _show_gates(loop: LoopContext, title: str, gates: list[dict[str, Any]]) -> None:
    rows = [
        (g["name"], Gate.model_validate(g).result, _number(g["measured"]), g["required"], g["detail"][:90])
        for g in gates
    ]
    if rows:
        loop.terminal.table(title, ("gate", "", "measured", "required", ""), rows)


def _number(value: float | None, precision: str = ".4g") -> str:
    return "–" if value is None else f"{value:{precision}}"
