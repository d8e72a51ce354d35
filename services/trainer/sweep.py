"""Searches a task's settings of LoRA before its training: cheap trials by Optuna, then the best one beside the default.

    rows        trained on | judged: each trial's validation loss | compared: no trial sees them
    trials      trainings on a share of the rows; the default is the first; poor ones are pruned
    comparison  the default and the best trial's settings, trained alike on all but the compared rows
    findings    the settings to train with: the default's, unless the best trial's are at least as good

All that a killed process goes on from is in `<job>/sweep`: Optuna's journal, checkpoints, findings.json.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend
from pydantic import BaseModel

from schemas.datasets import Example
from schemas.task_settings import Method, PreferenceSettings, TrainingSettings
from services.trainer import recipe
from services.trainer.domain import TrainingRequest, TrainingRow
from services.trainer.plan import SMALL_MODEL, resolve
from services.trainer.recipe import engine, methods
from services.trainer.recipe.checkpoints import BEST
from services.trainer.rows import tokenize_rows
from shared.errors import StepImpossible
from shared.files import write_atomically

RANKS = (8, 16, 32)
SHARE, MAX_ROWS = 0.25, 1_000  # Of the rows that are left, each time: to compare, to judge, to train a trial on.
TRIALS_TIME = 0.6  # The share of a sweep's time after which no trial begins: the rest is for the comparison.
STARTUP_TRIALS = 4  # They are drawn at random; later ones by what the others told.
Interval = tuple[float, float, float]  # A mean over rows, and its 95 % interval.
Scores = tuple[Any, Any, list[str]]  # Each row's loss in nats, whether its answer is right (1 or 0), and its group.
Comparison = dict[str, dict[str, Interval]]


class Findings(BaseModel):
    """findings.json: the settings to train with, and why.

    trials: number, state, settings, steps, seconds; of the judged rows, if it came so far, `loss` (nats per answer) and
    `right` (share). comparison: `loss` and `right` of the compared rows, each `default`, `best` and `difference` (best
    less default).
    """

    settings: TrainingSettings
    reason: str
    trials: list[dict[str, Any]]
    comparison: Comparison | None
    seconds: float


def sweep_settings(
    request: TrainingRequest,
    rows: Sequence[Example],
    folder: Path,
    report: engine.Report,
    max_rank: int,
    max_trials: int,
) -> Findings:
    """Search for at most `training.sweep_hours`. Idempotent: what was found stays. Raises as the training would."""
    file = folder / "sweep" / "findings.json"
    if file.exists():
        return Findings.model_validate_json(file.read_bytes())
    findings = Sweep(request, rows, file.parent, report, max_rank).run(max_trials)
    write_atomically(file, findings.model_dump_json(indent=2).encode())
    return findings


class Sweep:
    """One search: its trials are in Optuna's journal, those of earlier processes, too."""

    def __init__(
        self, request: TrainingRequest, rows: Sequence[Example], folder: Path, report: engine.Report, max_rank: int
    ) -> None:
        """Raises StepImpossible for rows that the training would refuse, so that nobody waits for a sweep before."""
        self._request, self._rows, self._report, self._max_rank = request, rows, report, max_rank
        fitting, _ = tokenize_rows(rows, methods.load_tokenizer(request.base), request.spec)
        self._shape, self._weights = methods.read_shape(request.base), folder / "weights"
        self._plan = resolve(request.settings, self._shape, len(fitting))
        self._divide(fitting)
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = JournalFileBackend(str(folder / "journal.log"))
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal),
            study_name="sweep",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS - 1, n_warmup_steps=2),
        )
        self._started: float = time.monotonic() - sum(trial.user_attrs["row"]["seconds"] for trial in self._ended)

    def _divide(self, fitting: Sequence[TrainingRow]) -> None:
        """Divide by whole groups of near-copies. The recipe sets the judged rows aside again, by share and seed."""
        seed, self._share = self._request.settings.seed, min(SHARE, MAX_ROWS / len(fitting))
        rest, compared = recipe.set_aside(fitting, self._share, seed + 1)
        training, judged = recipe.set_aside(rest, self._share, seed)
        few = recipe.set_aside(training, self._share, seed + 2)[1]
        groups = ({row.group for row in part} for part in (few, judged, rest, compared))
        parts = ([row for row in self._rows if row.group in part] for part in groups)
        self._few, self._judged, self._rest, self._compared = parts

    @property
    def _ended(self) -> list[optuna.trial.FrozenTrial]:
        """Not those that were under way when their process was killed: they are repeated, from their checkpoints."""
        return [trial for trial in self._study.trials if "row" in trial.user_attrs]

    def _time_used(self) -> float:
        return (time.monotonic() - self._started) / 3_600 / (self._request.settings.sweep_hours or math.inf)

    def run(self, max_trials: int) -> Findings:
        default, plan = self._request.settings, self._plan
        if not (self._few and self._judged and self._compared):
            reason = f"the default stays: {len(self._rows)} rows are too few to be divided for a sweep"
            return Findings(settings=default, reason=reason, trials=[], comparison=None, seconds=0.0)
        first = {"method": default.method.value, "r": default.r, "learning_rate": plan.learning_rate}
        while (number := len(self._ended)) < max_trials and (number == 0 or self._time_used() < TRIALS_TIME):
            # A search that was killed draws what it would have drawn: by number, and whatever is left of the trial that
            # was under way (constant_liar would take it into account).
            self._study.sampler = optuna.samplers.TPESampler(
                seed=(default.seed + number) % 2**32, n_startup_trials=STARTUP_TRIALS, constant_liar=False
            )
            if number == 0:
                self._study.enqueue_trial(first | {"epochs": plan.epochs})
            self._study.optimize(lambda trial: self._run_trial(trial, max_trials), n_trials=1)
        return self._choose()

    def _draw(self, trial: optuna.Trial) -> dict[str, Any]:
        """Around the default's plan, with its scale of the adapter, alpha over r. An adapter that is trained on keeps
        its rank. Of a large base model a trial is cheaper as QLoRA."""
        default, rate, epochs = self._request.settings, self._plan.learning_rate, self._plan.epochs
        ranks = {default.r, *(rank for rank in RANKS if rank <= self._max_rank and self._request.start is None)}
        cheaper = {Method.QLORA.value} if self._shape.parameters >= SMALL_MODEL else set()
        r = trial.suggest_categorical("r", sorted(ranks))
        drawn = trial.suggest_float("learning_rate", rate / 5, min(rate * 5, 0.5), log=True)
        return {
            "method": Method(trial.suggest_categorical("method", sorted({default.method.value} | cheaper))),
            "r": r,
            "alpha": max(1, default.alpha * r // default.r),
            "learning_rate": float(f"{drawn:.3g}"),
            "epochs": trial.suggest_float("epochs", epochs / 2, min(epochs * 2, 100.0), step=epochs / 2),
        }

    def _run_trial(self, trial: optuna.Trial, max_trials: int) -> float:
        """Train by the drawn settings. Returns the loss; a trial that was stopped has in its row how far it came."""
        number, began, settings = len(self._ended), time.monotonic(), self._draw(trial)
        # A step has as many rows as one of the training itself: the learning rate is of its steps.
        step = {"batch_size": self._plan.batch_size, "accumulation": self._plan.accumulation}
        request = self._request_with(settings | step | {"validation_share": self._share})
        width, folder = TRIALS_TIME / max_trials, self._weights / f"trial-{number}"
        report = self._part(number * width, width, f"trial {number + 1} of at most {max_trials}", trial)
        row: dict[str, Any] = {"number": number, "state": "complete", "settings": settings}
        try:
            self._train(request, [*self._few, *self._judged], folder, report)
        except (optuna.TrialPruned, StepImpossible) as error:
            if number == 0 and isinstance(error, StepImpossible):  # So would the training itself.
                raise
            row["state"] = str(error)
        if (folder / BEST).exists():  # The weights of its best evaluation.
            losses, right, groups = score(request, folder / BEST, self._judged)
            row |= {"loss": estimate(losses, groups), "right": estimate(right, groups)}
        steps = trial.user_attrs.get("steps", 0)
        trial.set_user_attr("row", row | {"steps": steps, "seconds": time.monotonic() - began})
        shutil.rmtree(folder, ignore_errors=True)
        if row["state"] != "complete":
            raise optuna.TrialPruned
        return float(row["loss"][0])

    def _choose(self) -> Findings:
        default, ended, comparison = self._request.settings, self._ended, None
        complete = [trial for trial in ended if trial.state.name == "COMPLETE"]
        best = min(complete, key=lambda trial: trial.value or 0.0, default=ended[0])
        drawn = {name: value for name, value in best.user_attrs["row"]["settings"].items() if name != "method"}
        words = f"r {drawn['r']}, learning rate {drawn['learning_rate']:g}, {drawn['epochs']:g} epochs"
        told = "it is the default"
        if best is not ended[0]:
            try:
                comparison = self._compare(drawn)
                loss, right = (describe(comparison[part]["difference"]) for part in ("loss", "right"))
                told = f"difference on {len(self._compared)} rows that no trial saw: loss {loss}, share right {right}"
            except (optuna.TrialPruned, StepImpossible) as error:
                told = f"it was not compared with the default: {error}"
        is_chosen = comparison is not None and is_as_good(comparison)
        verdict = "at least as good as the default" if is_chosen else "the default stays"
        return Findings(
            settings=default.model_copy(update=drawn) if is_chosen else default,
            reason=f"best of {len(ended)} trials: {words}; {verdict}; {told}",
            trials=[trial.user_attrs["row"] for trial in ended],
            comparison=comparison,
            seconds=time.monotonic() - self._started,
        )

    def _compare(self, drawn: dict[str, Any]) -> Comparison:
        scores, width = [], (1.0 - TRIALS_TIME) / 2
        for number, (name, settings) in enumerate((("default", {}), ("best", drawn))):
            request, folder = self._request_with(settings), self._weights / name
            report = self._part(TRIALS_TIME + number * width, width, f"comparison, {name}")
            self._train(request, self._rest, folder, report)
            scores.append(score(request, folder / "adapter", self._compared))
        return compare(*scores)

    def _request_with(self, settings: dict[str, Any]) -> TrainingRequest:
        """The request of one training. All rows together were checked for ones that are too long."""
        only = {"max_skipped_share": 1.0, "preferences": PreferenceSettings()}
        training = self._request.settings.model_copy(update=settings | only)
        return replace(self._request, spec=self._request.spec.model_copy(update={"training": training}), trackers=())

    def _train(self, request: TrainingRequest, rows: Sequence[Example], folder: Path, report: engine.Report) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        gc.collect()  # Else the model of the training before may be in memory still.
        recipe.train(request, rows, folder, report)

    def _part(self, start: float, width: float, title: str, trial: optuna.Trial | None = None) -> engine.Report:
        """The report of a training that is a part of the sweep. It ends a poor trial, and all when the time is over."""

        def report(done: float, total: float, message: str, validation_loss: float | None = None, **_: Any) -> None:
            self._report(start + width * done / total, 1.0, f"sweep, {title}: {message}")
            if self._time_used() > 1.0:
                raise optuna.TrialPruned("its time was over")
            if trial is not None and validation_loss is not None:
                trial.set_user_attr("steps", int(done))
                trial.report(validation_loss, math.ceil(done / math.ceil(total / recipe.EVALUATIONS)))
                if trial.should_prune():
                    raise optuna.TrialPruned("pruned")

        return report


def score(request: TrainingRequest, adapter: Path, rows: Sequence[Example]) -> Scores:
    """Score the adapter in a folder on those of the rows that can be tokenized."""
    fitting, _ = tokenize_rows(rows, methods.load_tokenizer(request.base), request.spec)
    shape = methods.read_shape(request.base)
    plan = resolve(request.settings, shape, len(fitting))
    model = methods.prepare(methods.load_base(request, shape), replace(request, start=adapter), plan)
    packing = recipe.choose_packing(model, fitting, plan.batch_size * request.settings.max_length)
    losses, right = engine.score_rows(model, fitting, packing, model.device)
    return np.array(losses), np.array(right, dtype=float), [row.group for row in fitting]


def compare(default: Scores, best: Scores) -> Comparison:
    """Compare two scores of the same rows, in the same order."""
    arms = {"default": default, "best": best, "difference": (best[0] - default[0], best[1] - default[1])}
    parts = enumerate(("loss", "right"))
    return {part: {arm: estimate(of[place], default[2]) for arm, of in arms.items()} for place, part in parts}


def is_as_good(comparison: Comparison) -> bool:
    """Whether the best trial's loss is no higher than the default's, and its share right not shown to be lower."""
    return comparison["loss"]["difference"][0] <= 0.0 <= comparison["right"]["difference"][2]


def estimate(values: Any, groups: Sequence[str]) -> Interval:
    """The mean of values, one a row, with a bootstrap's interval: over groups, whose rows are not independent."""
    _, numbers = np.unique(np.array(groups), return_inverse=True)
    sums, counts = np.bincount(numbers, weights=values), np.bincount(numbers)
    draws = np.random.default_rng(0).integers(0, len(sums), (2_000, len(sums)))
    low, high = np.percentile(sums[draws].sum(1) / counts[draws].sum(1), (2.5, 97.5))
    return float(np.mean(values)), float(low), float(high)


def describe(interval: Interval) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*interval)
