"""The command `ratchet train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.output import say, show_blocks, warn
from schemas.task_settings import Method
from shared.errors import ConfigurationError
from shared.report.blocks import Table
from shared.storage.artifacts import ArtifactStore

if TYPE_CHECKING:
    from schemas.adapters import AdapterTrained
    from schemas.tasks import TaskSpec
    from services.trainer.settings import TrainerSettings
    from services.trainer.sweep import Findings

DEFAULT_HOURS = 0.5
"""Of a sweep by hand, where neither the task nor the command says."""


def train(
    task: Annotated[str | None, typer.Argument(help="The task's name.", show_default=False)] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="ID", help="A version of its data set; default: the newest.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Instead of what the task's `training` says; repeat it."),
    ] = None,
    serving: Annotated[
        str | None,
        typer.Option("--from", metavar="ADAPTER", help="With training.start_from: last, the adapter to go on from."),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Train nothing: say how much memory each method takes.")
    ] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Search rank, learning rate and epochs first, by cheap trials.")
    ] = False,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.01, help="Of the sweep; default: the task's, else half an hour.")
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, max=1_000, help="Of the sweep, at most.")] = 16,
) -> None:
    """Train a task's candidate by hand, as its cycle does, and publish it in the artifact store.

    It takes the newest version of the task's data set and the task's training settings. No event is published: the
    candidate is asked by its name, and no rollout begins. Ctrl-C and the same command again: it goes on where it was.

    A sweep divides the training rows: trials train on some, are judged on others, and the best one is compared with the
    task's own settings on rows that no trial saw. Where it is not at least as good, the task's settings are taken.
    It never reads the rows that candidates are evaluated on.

    [bold]Examples[/bold]

      ratchet train support-desk

      ratchet train support-desk --dataset support-desk-9b1c2d3e4f50 --set r=32 --set learning_rate=0.0005

      ratchet train support-desk --sweep --hours 2          print the settings to copy into the task's file

      ratchet train support-desk --estimate                 memory by method; without a task: of a model of 8B
    """
    from deploy.cli.training.by_hand import changed_settings, dataset_event, dataset_of, rows_of, run_here
    from services.trainer.handlers import training_job
    from services.trainer.settings import TrainerSettings

    settings = TrainerSettings.load()
    store = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
    if task is None:
        if not estimate:
            raise ConfigurationError("which task?", "ratchet train TASK; which there are: ratchet tasks list")
        return _estimate(settings, None, 0)
    spec = _task(task)
    if sweep:
        found = spec.training.sweep_hours if hours is None else hours
        changes = [*(changes or ()), f"sweep_hours={found or DEFAULT_HOURS}"]
    spec = spec.model_copy(update={"training": changed_settings(spec.training, changes or ())})
    if estimate:
        return _estimate(settings, spec, rows_of(store, spec, dataset))
    manifest = dataset_of(store, spec, dataset)
    if spec.training.start_from == "last" and serving is None:
        reason = "training.start_from is last: it goes on from an adapter"
        raise ConfigurationError(reason, f"Name it with --from; which serves: ratchet rollout status {task}")
    say(f"{task}: {spec.training.method} of {spec.base_model} on {manifest.dataset_id}")
    job = training_job(dataset_event(store, manifest, spec), settings, serving)
    job = job.model_copy(update={"max_trials": trials})
    try:
        event, folder = run_here(job, settings.home / "jobs" / "trainer-by-hand")
    except KeyboardInterrupt:
        warn("stopped; the same command goes on from its last checkpoint", "yellow")
        raise typer.Exit(130) from None
    if spec.training.sweep_hours is not None:
        _show_sweep(folder)
    _show(event, settings)


def _task(name: str) -> TaskSpec:
    from services.scheduler.golden.changes import find_task
    from services.scheduler.settings import SchedulerSettings

    return find_task(SchedulerSettings.load().tasks_folder, name).spec


def _estimate(settings: TrainerSettings, spec: TaskSpec | None, rows: int) -> None:
    from deploy.cli.training.estimate import show_estimate

    show_estimate(spec, rows, settings.models_folder, settings.vllm_max_lora_rank)


def _show(event: AdapterTrained, settings: TrainerSettings) -> None:
    loss = "" if event.validation_loss is None else f", validation loss {event.validation_loss:.3f}"
    say(f"{event.kind} {event.adapter}: {event.steps} steps, loss {event.train_loss:.3f}{loss}", "green")
    say(f"It is at {event.uri}")
    urls = settings.vllm_urls if event.kind == "adapter" else settings.model_urls
    body = json.dumps({"model": event.adapter, "messages": [{"role": "user", "content": "…"}]}, ensure_ascii=False)
    say(f"Ask it: curl {urls[0]}/v1/chat/completions -H 'content-type: application/json' -d '{body}'")


def _show_sweep(folder: Path) -> None:
    from services.trainer.sweep import Findings

    findings = Findings.model_validate_json((folder / "sweep" / "findings.json").read_bytes())
    show_blocks(trials_table(findings))
    say(findings.reason)
    chosen = findings.settings
    say("The settings that it was trained with, for the task's file:")
    lines = {"method": chosen.method, "r": chosen.r, "alpha": chosen.alpha}
    lines |= {"learning_rate": chosen.learning_rate, "epochs": chosen.epochs}
    say("training:\n" + "\n".join(f"  {name}: {value}" for name, value in lines.items() if value is not None))


def trials_table(findings: Findings) -> Table:
    """Return a sweep's trials as a table. Loss: nats per answer of the judged rows; right: the share of them."""
    from services.trainer.sweep import describe

    columns = ("trial", "method", "r", "learning rate", "epochs", "loss (95 %)", "right (95 %)", "steps", "s", "")
    rows = []
    for trial in findings.trials:
        settings = trial["settings"]
        rows.append((
            "default" if trial["number"] == 0 else str(trial["number"]), Method(settings["method"]).value,
            str(settings["r"]), f"{settings['learning_rate']:g}", f"{settings['epochs']:g}",
            *(describe(trial[part]) if part in trial else "–" for part in ("loss", "right")),
            str(trial["steps"]), f"{trial['seconds']:.0f}", trial["state"],
        ))  # fmt: skip
    return Table(columns, rows, whole=columns[5:7])
