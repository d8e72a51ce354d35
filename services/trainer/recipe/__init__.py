"""The recipe, from rows to weights: the one place of the trainer that loads torch.

    train     read the shape → plan → tokens → base model → what is trained → steps → best weights → saved

`methods.py` loads and saves by method, `packing.py` and `engine.py` are the steps, `checkpoints.py` what a killed
process goes on from. `fusion.py` merges adapters in place of steps; `preferences.py` is a second stage.
"""

from __future__ import annotations

import logging
import math
import resource
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import TrainingArguments

from schemas.datasets import Example
from services.trainer.domain import SkippedRows, TrainingOutcome, TrainingRequest, TrainingRow, out_of_memory
from services.trainer.plan import Plan, resolve
from services.trainer.recipe import methods
from services.trainer.recipe.checkpoints import BEST, CHECKPOINTS, CheckpointSchedule, last_checkpoint, read_best
from services.trainer.recipe.engine import Chance, Follow, Packing, Report, SftTrainer, score_rows
from services.trainer.rows import tokenize_rows
from shared.errors import StepImpossible
from shared.identity import content_hash

logger = logging.getLogger(__name__)

EVALUATIONS = 5
"""Of the validation rows in a training."""
MIN_VALIDATION_ROWS = 8
"""With fewer the loss on them is chance: then there are none, and the last weights are taken."""


def train(request: TrainingRequest, rows: Sequence[Example], folder: Path, report: Report) -> TrainingOutcome:
    """Train on `rows` and write `folder/adapter` or `folder/model`; checkpoints are in `folder/checkpoints`.

    Raises StepImpossible if the model cannot be loaded or has not the modules that are to be trained, if too few rows
    can be trained on, if memory does not suffice, or if the loss is no number any more.
    """
    try:
        return _train(request, rows, folder, report)
    except (MemoryError, RuntimeError) as error:
        if (explained := out_of_memory(error, request.spec)) is None:
            raise
        raise explained from error


def _train(request: TrainingRequest, rows: Sequence[Example], folder: Path, report: Report) -> TrainingOutcome:
    started = time.monotonic()
    if request.threads:
        torch.set_num_threads(request.threads)
    report(0, 1, "loading the base model")
    shape = methods.read_shape(request.base)
    tokenizer = methods.load_tokenizer(request.base)
    fitting, skipped = tokenize_rows(rows, tokenizer, request.spec)
    training, validation = set_aside(fitting, request.settings.validation_share, request.settings.seed)
    plan = resolve(request.settings, shape, len(training))
    logger.info(plan.reason)
    base = methods.load_base(request, shape)
    model = methods.prepare(base, request, plan)
    packing = choose_packing(model, training, plan.batch_size * request.settings.max_length)
    follow = Follow(report, folder)
    trainer = _trainer(model, request, plan, training, validation, packing, folder, follow)
    trainer.train(resume_from_checkpoint=_resumed(folder))
    best = read_best(folder)
    if best is not None and best[0] != trainer.state.global_step:
        methods.load_weights(model, folder / BEST)
    methods.save(model, tokenizer, request, folder)
    return _outcome(trainer, follow, plan, skipped, training, started, best)


def set_aside(rows: Sequence[TrainingRow], share: float, seed: int) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """The rows to train on, and those for the validation loss: whole groups of near-copies, drawn by their hash."""
    limit = share * 0xFFFFFFFF
    chosen = [int(content_hash(row.group or repr(row.tokens), str(seed))[:8], 16) < limit for row in rows]
    if sum(chosen) < MIN_VALIDATION_ROWS or all(chosen):
        return list(rows), []
    return (
        [row for row, is_chosen in zip(rows, chosen, strict=True) if not is_chosen],
        [row for row, is_chosen in zip(rows, chosen, strict=True) if is_chosen],
    )


def choose_packing(model: Any, rows: Sequence[TrainingRow], max_tokens: int) -> Packing:
    """How rows are packed, tried on two of them: attention that does not keep rows apart gives another loss."""
    attention = "positions" if methods.has_flash_attention() else "shared"
    packing, alone = Packing(rows, max_tokens, attention), Packing(rows[:1], max_tokens, "padded")
    pair = sorted(rows, key=lambda row: len(row.tokens))[:2]
    try:
        together, apart = (sum(score_rows(model, pair, way, model.device)[0]) for way in (packing, alone))
    except (TypeError, ValueError) as error:
        together, apart = math.nan, 0.0
        logger.info("the model takes no packed rows: %s", error)
    if math.isclose(together, apart, rel_tol=0.01, abs_tol=0.01):
        return packing
    logger.warning("rows are not packed: their attention mixes them (loss %.3f, apart %.3f)", together, apart)
    model.set_attn_implementation("sdpa")
    return Packing(rows, max_tokens, "padded")


def _trainer(
    model: Any, request: TrainingRequest, plan: Plan, rows: Sequence[TrainingRow], validation: Sequence[TrainingRow],
    packing: Packing, folder: Path, follow: Follow,
) -> SftTrainer:  # fmt: skip
    settings = request.settings
    steps = math.ceil(plan.epochs * math.ceil(len(rows) / plan.step_rows))
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=plan.step_rows,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        eval_strategy="steps" if validation else "no",
        eval_steps=max(1, math.ceil(steps / EVALUATIONS)),
        seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # It would report 0 for a loss that is no number.
        save_strategy="no",  # `CheckpointSchedule` asks for them.
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **methods.training_arguments(settings),
    )
    optimizers: tuple[Any, Any] = (None, None)
    if settings.loraplus_ratio is not None and request.start is None:
        options = {"lr": plan.learning_rate, "loraplus_lr_ratio": settings.loraplus_ratio}
        optimizers = (create_loraplus_optimizer(model, torch.optim.AdamW, **options), None)
    trainer = SftTrainer(
        rows, validation, packing, plan.step_rows, model=model, args=arguments, optimizers=optimizers,
        callbacks=[Chance(settings.seed), follow, CheckpointSchedule()],
    )  # fmt: skip
    follow.trainer = trainer
    return trainer


def _resumed(folder: Path) -> str | None:
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    if checkpoint is None:
        shutil.rmtree(folder / BEST, ignore_errors=True)
    else:
        logger.info("resuming from %s", checkpoint)
    return checkpoint


def _outcome(
    trainer: SftTrainer, follow: Follow, plan: Plan, skipped: SkippedRows, rows: Sequence[TrainingRow], started: float,
    best: tuple[int, float] | None,
) -> TrainingOutcome:  # fmt: skip
    state = trainer.state
    history = [entry for entry in state.log_history if "loss" in entry]
    last_epoch = [float(entry["loss"]) for entry in history if entry["epoch"] > state.epoch - 1]
    seconds = time.monotonic() - follow.started
    steps = state.global_step - follow.first_step
    mean_tokens = sum(len(row.tokens) for row in rows) / len(rows)
    return TrainingOutcome(
        steps=state.global_step,
        losses=tuple(float(entry["loss"]) for entry in history),
        skipped=skipped,
        train_loss=sum(last_epoch) / max(len(last_epoch), 1),
        seconds=time.monotonic() - started,
        dtype=str(methods.compute_dtype()).removeprefix("torch."),
        versions={name: version(name) for name in ("torch", "transformers", "peft", "trl", "accelerate")},
        validation_losses=tuple((e["step"], e["eval_loss"]) for e in state.log_history if "eval_loss" in e),
        best_step=best[0] if best else None,
        tokens_per_second=steps * min(plan.step_rows, len(rows)) * mean_tokens / max(seconds, 1e-9),
        peak_memory=peak_memory(),
        plan=plan.reason,
    )


def peak_memory() -> int:
    """Bytes: of the GPU's memory where there is one, else of this process."""
    if methods.on_gpu():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


__all__ = ["StepImpossible", "train"]
