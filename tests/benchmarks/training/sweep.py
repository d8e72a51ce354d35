"""A sweep on Banking77's ten intents: its trials, its time, and what it chose beside the default on test rows.

`python -m tests.benchmarks.training.sweep`. A sweep that was stopped goes on in its folder.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.trainer.domain import TrainingRequest
from services.trainer.sweep import Findings, compare, describe, score, sweep_settings
from shared.settings import Settings
from tests.benchmarks.table import Grid, Measured, report, take_missed
from tests.benchmarks.training.rows import PROMPT, banking, examples

BASE = "SmolLM2-135M-Instruct"
PER_INTENT, TEST_ROWS, TRIALS, HOURS = 30, 200, 8, 0.5


def main() -> None:
    """Misses an aim with fewer than eight trials, over half an hour, or if the chosen one is shown to be worse."""
    training, test, labels = banking(PER_INTENT, TEST_ROWS)
    settings = Settings.load()
    spec = TaskSpec(
        name="banking", kind=TaskKind.CLASSIFICATION, base_model=BASE, system_prompt=PROMPT, labels=tuple(labels),
        training=TrainingSettings(sweep_hours=HOURS),
    )  # fmt: skip
    request = TrainingRequest(spec, str(settings.models_folder / BASE), threads=1)
    folder = settings.home / "bench" / "sweep"
    folder.mkdir(parents=True, exist_ok=True)
    findings = sweep_settings(request, examples(training), folder, _print, 32, TRIALS)
    figures = [
        Measured("trials", "", len(findings.trials), min_value=8),
        Measured("time of the sweep", "minutes", findings.seconds / 60, max_value=30),
    ]
    grids = [_trials(findings), Grid("What was chosen", ("",), [(findings.reason,)])]
    if findings.comparison is not None:
        weights, rows = folder / "sweep" / "weights", examples(test)
        chosen = replace(request, spec=spec.model_copy(update={"training": findings.settings}))
        is_default = findings.settings == spec.training
        default = score(request, weights / "default" / "adapter", rows)
        best = default if is_default else score(chosen, weights / "best" / "adapter", rows)
        on_test = compare(default, best)
        _, low, _ = on_test["loss"]["difference"]
        _, _, high = on_test["right"]["difference"]
        figures += [  # Worse is shown where the whole interval is on one side of 0.
            Measured("loss on test rows, low end of the difference", "nats", low, max_value=0.0),
            Measured("share right on test rows, high end of the difference", "", high, min_value=0.0),
        ]
        columns = ("", "default", "chosen", "difference")
        compared = [(findings.comparison, "rows that no trial saw"), (on_test, f"{len(rows)} test rows")]
        lines = [
            (f"{part}, {where}", *(describe(table[part][arm]) for arm in ("default", "best", "difference")))
            for table, where in compared for part in ("loss", "right")
        ]  # fmt: skip
        grids.append(Grid("Default and chosen, trained alike: loss in nats per answer, share right", columns, lines))
    report([], "training_sweep", figures, grids)


def _trials(findings: Findings) -> Grid:
    columns = ("trial", "r", "learning rate", "epochs", "loss (95 %)", "right (95 %)", "steps", "seconds", "")

    def line(trial: dict[str, Any]) -> tuple[str, ...]:
        drawn = trial["settings"]
        return (
            "default" if trial["number"] == 0 else str(trial["number"]), str(drawn["r"]),
            f"{drawn['learning_rate']:g}", f"{drawn['epochs']:g}",
            *(describe(trial[part]) if part in trial else "–" for part in ("loss", "right")),
            str(trial["steps"]), f"{trial['seconds']:.0f}", trial["state"],
        )  # fmt: skip

    return Grid("Trials", columns, [line(trial) for trial in findings.trials])


def _print(done: float, total: float, message: str = "", **_: Any) -> None:
    print(f"{done / total:.0%} {message}", flush=True)


if __name__ == "__main__":
    main()
    if missed := take_missed():
        sys.exit(f"missed: {'; '.join(missed)}")
