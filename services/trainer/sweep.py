"""Searches a task's settings of LoRA before its training: cheap trials by Optuna, then the best one beside the default.

    rows        trained on | judged: each trial's validation loss | compared: no trial sees them
    trials      trainings on a share of the rows; the default is the first; poor ones are pruned
    comparison  the default and the best trial's settings, trained alike on all but the compared rows
    findings    the settings to train with: the default's, unless the best trial's are at least as good

All that a killed process goes on from is in `<job>/sweep`: the trials that ended, checkpoints, findings.json.
"""

from __future__ import annotations

import gc
import math
import pickle
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from pydantic import BaseModel

from schemas.datasets import Example
from schemas.task_settings import Method, PreferenceSettings, TrainingSettings
from services.trainer import recipe
from services.trainer.domain import TrainingRequest
from services.trainer.plan import SMALL_MODEL, resolve
from services.trainer.recipe import engine, methods
from services.trainer.rows import tokenize_rows
from shared.errors import StepImpossible
from shared.files import write_atomically

SHARE, MAX_ROWS = 0.25, 1_000  # Of the rows that are left, each time: to compare, to judge, to train a trial on.
TRIALS_TIME = 0.6  # The share of a sweep's time after which no trial begins: the rest is for the comparison.
Interval = tuple[float, float, float]  # A mean over rows, and its 95 % interval.
Scores = tuple[Any, Any, list[str]]  # Each row's loss in nats, whether its answer is right (1 or 0), and its group.


class Findings(BaseModel):
    """findings.json: the settings to train with, and why.

    trials: number, state, settings, steps, seconds; if it was trained to its end also, of the judged rows, `loss` (nats
    per answer) and `right` (share). comparison: `loss` and `right` of the compared rows, each `default`, `best` and
    `difference` (best less default).
    """

    settings: TrainingSettings
    reason: str
    trials: list[dict[str, Any]] = []
    comparison: dict[str, dict[str, Interval]] | None = None
    seconds: float = 0.0


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
    if not file.exists():
        findings = Sweep(request, rows, file.parent, report, max_rank, max_trials).run()
        write_atomically(file, findings.model_dump_json(indent=2).encode())
    return Findings.model_validate_json(file.read_bytes())


class Sweep:
    """One search. After a kill it goes on from the trials that ended, and draws what it would have drawn."""

    def __init__(
        self,
        request: TrainingRequest,
        rows: Sequence[Example],
        folder: Path,
        report: engine.Report,
        max_rank: int,
        max_trials: int,
    ) -> None:
        """Raises StepImpossible for rows that the training would refuse, so that nobody waits for a sweep before."""
        self._request, self._report, self._max_rank, self._max_trials = request, report, max_rank, max_trials
        self._weights, self._state = folder / "weights", folder / f"trials-{optuna.__version__}.pickle"
        fitting, _ = tokenize_rows(rows, methods.load_tokenizer(request.base), request.spec)
        self._shape = methods.read_shape(request.base)
        self._plan = resolve(request.settings, self._shape, len(fitting))
        # By whole groups of near-copies. The recipe sets the judged rows aside again, by share and seed.
        seed, self._share = request.settings.seed, min(SHARE, MAX_ROWS / len(fitting))
        rest, compared = recipe.set_aside(fitting, self._share, seed + 1)
        training, judged = recipe.set_aside(rest, self._share, seed)
        few = recipe.set_aside(training, self._share, seed + 2)[1]
        groups = ({row.group for row in part} for part in (few, judged, rest, compared))
        parts = ([row for row in rows if row.group in part] for part in groups)
        self._few, self._judged, self._rest, self._compared = parts
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=4),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2),
        )
        first = {"learning_rate": self._plan.learning_rate, "epochs": self._plan.epochs}
        self._study.enqueue_trial(first | {"method": request.settings.method, "r": request.settings.r})
        self._trials: list[dict[str, Any]] = []
        if self._state.exists():  # The sampler is in it, so that it draws what it would have drawn.
            self._study, self._trials = pickle.loads(self._state.read_bytes())  # noqa: S301  # The job's own file.
        self._limit = 3_600 * (request.settings.sweep_hours or math.inf)
        self._started: float = time.monotonic() - sum(trial["seconds"] for trial in self._trials)

    def run(self) -> Findings:
        default = self._request.settings
        if not (self._few and self._judged and self._compared):
            return Findings(
                settings=default, reason="the default stays: its rows are too few to be divided for a sweep"
            )
        while len(self._trials) < self._max_trials and self._seconds() < TRIALS_TIME * self._limit:
            self._run_trial()
        complete = (trial for trial in self._trials if "loss" in trial)
        best = min(complete, key=lambda trial: trial["loss"], default=self._trials[0])
        drawn = {name: value for name, value in best["settings"].items() if name != "method"}
        found = Findings(settings=default, reason="it is the default", trials=self._trials)
        if best["number"] > 0:
            try:
                found = self._compare(drawn)
            except (optuna.TrialPruned, StepImpossible) as error:
                found.reason = f"the default stays; it was not compared with it: {error}"
        words = f"r {drawn['r']}, learning rate {drawn['learning_rate']:g}, {drawn['epochs']:g} epochs"
        reason = f"best of {len(self._trials)} trials: {words}; {found.reason}"
        return found.model_copy(update={"reason": reason, "seconds": self._seconds()})

    def _run_trial(self) -> None:
        """Train by settings drawn around the default's plan, with its scale of the adapter, alpha over r."""
        began, trial, default, plan = self._seconds(), self._study.ask(), self._request.settings, self._plan
        # An adapter that is trained on keeps its rank. Of a large base model a trial is cheaper as QLoRA.
        ranks = {default.r, *(rank for rank in (8, 16, 32) if rank <= self._max_rank and not self._request.start)}
        methods_tried = {default.method} | ({Method.QLORA} if self._shape.parameters >= SMALL_MODEL else set())
        r = trial.suggest_categorical("r", sorted(ranks))
        rate = trial.suggest_float("learning_rate", plan.learning_rate / 5, min(plan.learning_rate * 5, 0.5), log=True)
        settings = {
            "method": trial.suggest_categorical("method", sorted(methods_tried)),
            "r": r,
            "alpha": max(1, default.alpha * r // default.r),
            "learning_rate": float(f"{rate:.3g}"),
            "epochs": trial.suggest_float("epochs", plan.epochs / 2, min(plan.epochs * 2, 100.0), step=plan.epochs / 2),
        }
        # A step has as many rows as one of the training itself: the learning rate is of its steps.
        step = {"batch_size": plan.batch_size, "accumulation": plan.accumulation, "validation_share": self._share}
        row = {"number": trial.number, "state": "complete", "settings": settings}
        name, rows = f"trial-{trial.number}", [*self._few, *self._judged]
        try:
            losses, right, groups = self._train(trial.number, name, settings | step, rows, self._judged, trial)
            row |= {"loss": estimate(losses, groups), "right": estimate(right, groups)}
            self._study.tell(trial, float(np.mean(losses)))
        except (optuna.TrialPruned, StepImpossible) as error:
            if trial.number == 0 and isinstance(error, StepImpossible):  # So would the training itself.
                raise
            row["state"] = str(error)
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        row |= {"steps": trial.user_attrs.get("steps", 0), "seconds": self._seconds() - began}
        self._trials.append(row)
        write_atomically(self._state, pickle.dumps((self._study, self._trials)))
        shutil.rmtree(self._weights / name, ignore_errors=True)

    def _compare(self, drawn: dict[str, Any]) -> Findings:
        default, parts = self._request.settings, (self._rest, self._compared)
        scores = self._train(self._max_trials, "default", {}, *parts)
        comparison = compare(scores, self._train(self._max_trials + 1, "best", drawn, *parts))
        loss, right = comparison["loss"]["difference"], comparison["right"]["difference"]
        is_as_good = loss[0] <= 0.0 <= right[2]  # No higher a loss, and a share right that is not shown to be lower.
        return Findings(
            settings=default.model_copy(update=drawn) if is_as_good else default,
            reason=f"{'at least as good as the default' if is_as_good else 'the default stays'}; difference on "
            f"{len(self._compared)} rows that no trial saw: loss {describe(loss)}, share right {describe(right)}",
            trials=self._trials,
            comparison=comparison,
        )

    def _train(
        self,
        number: int,
        name: str,
        settings: dict[str, Any],
        rows: Sequence[Example],
        scored: Sequence[Example],
        trial: optuna.Trial | None = None,
    ) -> Scores:
        """The scores of one training. Raises TrialPruned for a poor trial, and for all when the time is over."""
        # All rows together were checked for ones that are too long.
        only = {"max_skipped_share": 1.0, "preferences": PreferenceSettings()}
        training = self._request.settings.model_copy(update=settings | only)
        spec = self._request.spec.model_copy(update={"training": training})
        request, folder = replace(self._request, spec=spec, trackers=()), self._weights / name

        def report(done: float, total: float, message: str, validation_loss: float | None = None, **_: Any) -> None:
            self._report(number + done / total, self._max_trials + 2, f"sweep, {name}: {message}")
            if self._seconds() > self._limit:
                raise optuna.TrialPruned("its time was over")
            if trial is not None and validation_loss is not None:
                trial.set_user_attr("steps", int(done))
                trial.report(validation_loss, math.ceil(recipe.EVALUATIONS * done / total))
                if trial.should_prune():
                    raise optuna.TrialPruned("pruned")

        folder.mkdir(parents=True, exist_ok=True)
        gc.collect()  # Else the model of the training before may be in memory still.
        recipe.train(request, rows, folder, report)
        return score(request, folder / "adapter", scored)

    def _seconds(self) -> float:
        return time.monotonic() - self._started


def score(request: TrainingRequest, adapter: Path, rows: Sequence[Example]) -> Scores:
    """Score the adapter in a folder on those of the rows that can be tokenized."""
    fitting, _ = tokenize_rows(rows, methods.load_tokenizer(request.base), request.spec)
    shape = methods.read_shape(request.base)
    plan = resolve(request.settings, shape, len(fitting))
    model = methods.prepare(methods.load_base(request, shape), replace(request, start=adapter), plan)
    packing = recipe.choose_packing(model, fitting, plan.batch_size * request.settings.max_length)
    losses, right = engine.score_rows(model, fitting, packing, model.device)
    return np.array(losses), np.array(right, dtype=float), [row.group for row in fitting]


def compare(default: Scores, best: Scores) -> dict[str, dict[str, Interval]]:
    """Compare two scores of the same rows, in the same order."""
    arms = {"default": default, "best": best, "difference": (best[0] - default[0], best[1] - default[1])}
    parts = enumerate(("loss", "right"))
    return {part: {arm: estimate(of[place], default[2]) for arm, of in arms.items()} for place, part in parts}


def estimate(values: Any, groups: Sequence[str]) -> Interval:
    """The mean of values, one a row, with a bootstrap's interval: over groups, whose rows are not independent."""
    _, numbers = np.unique(np.array(groups), return_inverse=True)
    sums, counts = np.bincount(numbers, weights=values), np.bincount(numbers)
    draws = np.random.default_rng(0).integers(0, len(sums), (2_000, len(sums)))
    low, high = np.percentile(sums[draws].sum(1) / counts[draws].sum(1), (2.5, 97.5))
    return float(np.mean(values)), float(low), float(high)


def describe(interval: Interval) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*interval)
