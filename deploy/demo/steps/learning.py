"""The learning cycle, followed on the console: failure modes, dataset, training, evaluation."""

from __future__ import annotations

from typing import Any

from deploy.demo.errors import CandidateStopped, CycleStepFailed
from deploy.demo.state import LoopContext
from deploy.demo.steps.cycle import CyclePage, OnPoll, event_of, follow
from deploy.demo.steps.inspection import show_inspection
from deploy.demo.terminal import StepProgress
from schemas.evaluation import EVALUATION_PAGE
from schemas.task_settings import Method
from shared.report.blocks import Section
from shared.report.evaluation import evaluated_blocks
from shared.report.learning import failure_blocks


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
    loop.terminal.show(Section("Failure modes", failure_blocks(event)))


async def await_dataset(loop: LoopContext) -> dict[str, Any]:
    """Wait for the dataset, and show its inspection. Returns its event."""
    with loop.terminal.step("dataset", "Dataset from the corrections: validated, split, weighed, gated") as progress:
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
    loop.terminal.show(*evaluated_blocks(event))
    folder = await loop.fetch(event["report"]) if event.get("report") else None
    if folder is not None and (folder / EVALUATION_PAGE).is_file():
        loop.result.cycle.evaluation_page = folder / EVALUATION_PAGE
        loop.terminal.say(f"The evaluation as a page: {folder / EVALUATION_PAGE}")
    if event["verdict"] == "failed":
        failed = [gate for gate in event["gates"] if not gate["passed"]]
        raise CandidateStopped(
            "evaluation gate " + ", ".join(gate["name"] for gate in failed),
            "; ".join(f"{g['name']} measured {_number(g['measured'])}, required {g['required']}" for g in failed),
        )


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


def _number(value: float | None, precision: str = ".4g") -> str:
    return "–" if value is None else f"{value:{precision}}"
