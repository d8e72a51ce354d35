"""The recipe, from rows to weights: the one place of the trainer that loads torch.

    train     tokens → plan → what it takes → base model → what is trained → steps → best weights → preferences → saved

`methods.py` loads and saves by method, `packing.py` and `engine.py` are the steps, `checkpoints.py` what a killed
process goes on from. `fusion.py` merges adapters in place of steps; `preferences.py` is a second stage;
`resources.py` says, and refuses, what a training takes of the machine.
"""

from __future__ import annotations

import logging
import math
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import PrinterCallback, TrainingArguments

from schemas.datasets import Example
from schemas.task_settings import Method
from services.trainer.distributed import fsdp_arguments
from services.trainer.domain import SkippedRows, TrainingOutcome, TrainingRequest, TrainingRow, out_of_memory
from services.trainer.plan import ModelShape, Plan, resolve
from services.trainer.recipe import methods
from services.trainer.recipe.checkpoints import (
    BEST,
    CHECKPOINTS,
    CheckpointSchedule,
    agreed,
    keep_best,
    last_checkpoint,
    read_best,
)
from services.trainer.recipe.engine import Chance, Follow, Packing, Report, SftTrainer, score_rows
from services.trainer.recipe.fusion import fuse
from services.trainer.recipe.packing import shared_prompt
from services.trainer.recipe.resources import (
    EnergyMeter,
    check_cost,
    check_memory_for,
    measure_speed,
    training_flops,
)
from services.trainer.rows import tokenize_rows
from services.trainer.tracking import callbacks_of
from shared.identity import content_hash
from shared.model.prices import read_prices

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")
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


@dataclass(frozen=True)
class _Ready:
    """What is known before the base model is loaded."""

    tokenizer: Any
    shape: ModelShape
    plan: Plan
    training: list[TrainingRow]
    validation: list[TrainingRow]
    skipped: SkippedRows


def _train(request: TrainingRequest, rows: Sequence[Example], folder: Path, report: Report) -> TrainingOutcome:
    started, meter = time.monotonic(), EnergyMeter()
    ready = _get_ready(request, rows, folder, report)
    base = methods.load_base(request, ready.shape)
    if request.settings.method is Method.FUSION:
        outcome = _fuse(base, request, ready, folder, report)
    else:
        outcome = _step(base, request, ready, folder, report, meter)
    measured = {
        "skipped": ready.skipped,
        "seconds": time.monotonic() - started,
        "dtype": str(methods.compute_dtype()).removeprefix("torch."),
        "versions": {name: version(name) for name in _LIBRARIES},
        "peak_memory": peak_memory(),
        "joules": meter.joules(),
    }
    return outcome.model_copy(update=measured)


def _get_ready(request: TrainingRequest, rows: Sequence[Example], folder: Path, report: Report) -> _Ready:
    """Plan a training, say what it takes, and refuse what is not possible, before anything large is loaded."""
    settings = request.settings
    shape, tokenizer = methods.read_shape(request.base), methods.load_tokenizer(request.base)
    fitting, skipped = tokenize_rows(rows, tokenizer, request.spec)
    training, validation = set_aside(fitting, settings.validation_share, settings.seed)
    plan = resolve(settings, shape, len(training))
    check_memory_for(request, shape, plan, training)
    threads, speed = measure_speed(folder, shape, methods.compute_dtype(), request.threads)
    flops = training_flops(shape, settings.method, plan, training, shared_prompt(training), methods.on_gpu())
    prices, gpus = read_prices(request.prices_file), torch.cuda.device_count()
    takes = check_cost(flops, speed, gpus, threads, prices, request.spec)
    logger.info("%s; %s", plan.reason, takes)
    report(0, 1, f"loading the base model; the training takes {takes}")
    return _Ready(tokenizer, shape, plan, training, validation, skipped)


def _step(
    base: Any, request: TrainingRequest, ready: _Ready, folder: Path, report: Report, meter: EnergyMeter
) -> TrainingOutcome:
    """Train by steps, on rows and then on people's preferences, and save the best weights."""
    settings, plan = request.settings, ready.plan
    model = methods.prepare(base, request, plan)
    packing = choose_packing(model, ready.training, plan.batch_size * settings.max_length)
    has_pairs = settings.preferences.method != "none"
    follow = Follow(half(report, 0) if has_pairs else report, folder, meter.joules)
    trainer = _trainer(model, request, ready, packing, folder, follow)
    trainer.train(resume_from_checkpoint=_resumed(folder))
    best = agreed(read_best(folder))
    if request.gpus > 1:
        if best is None:
            keep_best(trainer, folder, trainer.state.global_step, math.inf)
        if trainer.is_world_process_zero():
            methods.save_gathered(folder / BEST, ready.tokenizer, request, folder)
        return _outcome(trainer, follow, ready, best, ())
    if best is not None and best[0] != trainer.state.global_step:
        methods.load_weights(model, folder / BEST)
    notes: tuple[str, ...] = ()
    if has_pairs:
        from services.trainer.recipe.preferences import align  # TRL takes four seconds to import.

        notes = (align(model, ready.tokenizer, request, folder, half(report, 1)),)
    methods.save(model, ready.tokenizer, request, folder)
    return _outcome(trainer, follow, ready, best, notes)


def half(report: Report, number: int) -> Report:
    """The report of the first (0) or the second (1) of two stages: progress that fell back would count as none."""

    def reported(done: float, total: float, message: str, **losses: Any) -> None:
        report(done + number * total, 2 * total, message, **losses)

    return reported


def _fuse(base: Any, request: TrainingRequest, ready: _Ready, folder: Path, report: Report) -> TrainingOutcome:
    """Merge adapters, with the weights that fit the rows set aside best, and save the result."""
    attention = choose_packing(base, ready.training, request.settings.max_length).attention
    rows = ready.validation or ready.training
    model, weights, loss = fuse(base, request, rows, attention, report)
    methods.save(model, ready.tokenizer, request, folder)
    note = f"{request.settings.fusion.combination} of {', '.join(request.parents)} with the weights {weights}"
    return TrainingOutcome(
        steps=0, losses=(), train_loss=loss, validation_losses=((0, loss),), plan=note, notes=(note,)
    )


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
    """How rows are packed, tried on two of them: where attention keeps rows apart, what one of them says changes
    nothing for the other. Losses of rows that are computed apart would differ, too, by rounding in bfloat16."""
    has_flash = model.device.type == "cuda" and methods.has_flash_attention()  # FSDP takes a model from the CPU.
    packing = Packing(rows, max_tokens, "positions" if has_flash else "shared")
    # Of one row alone there is nothing to mix: it stands beside itself.
    first, last = (sorted(rows, key=lambda row: len(row.tokens)) * 2)[:2]
    own = len(first.tokens) - packing.prefix
    other = replace(first, tokens=first.tokens[: packing.prefix] + last.tokens[-1:] * own)
    try:
        losses = [score_rows(model, [before, last], packing, model.device)[0][1] for before in (first, other)]
    except (TypeError, ValueError) as error:
        losses = [math.nan]
        logger.info("the model takes no packed rows: %s", error)
    if math.isclose(losses[0], losses[-1], rel_tol=1e-3):
        return packing
    logger.warning("rows are not packed: the model's attention mixes them (losses %s)", losses)
    model.set_attn_implementation("sdpa")
    return Packing(rows, max_tokens, "padded")


def _trainer(
    model: Any, request: TrainingRequest, ready: _Ready, packing: Packing, folder: Path, follow: Follow
) -> SftTrainer:
    settings, plan = request.settings, ready.plan
    steps = math.ceil(plan.epochs * math.ceil(len(ready.training) / plan.step_rows))
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=plan.step_rows,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        eval_strategy="steps" if ready.validation else "no",
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
        **(fsdp_arguments(request.gpus) if methods.on_gpu() else {}),
    )
    optimizers: tuple[Any, Any] = (None, None)
    if settings.loraplus_ratio is not None and request.start is None:
        options = {"lr": plan.learning_rate, "loraplus_lr_ratio": settings.loraplus_ratio}
        optimizers = (create_loraplus_optimizer(model, torch.optim.AdamW, **options), None)
    params = settings.model_dump(mode="json") | {"base_model": request.spec.base_model, "plan": plan.reason}
    trackers = callbacks_of(request.trackers, folder, folder.name, params)
    trainer = SftTrainer(
        ready.training, ready.validation, packing, plan.step_rows, model=model, args=arguments, optimizers=optimizers,
        callbacks=[Chance(settings.seed), follow, CheckpointSchedule(), *trackers],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # It prints what is reported.
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
    trainer: SftTrainer, follow: Follow, ready: _Ready, best: tuple[int, float] | None, notes: tuple[str, ...]
) -> TrainingOutcome:
    state, rows = trainer.state, ready.training
    history = [entry for entry in state.log_history if "loss" in entry]
    last_epoch = [float(entry["loss"]) for entry in history if entry["epoch"] > state.epoch - 1]
    mean_tokens = sum(len(row.tokens) for row in rows) / len(rows)
    read = (state.global_step - follow.first_step) * min(ready.plan.step_rows, len(rows)) * mean_tokens
    return TrainingOutcome(
        steps=state.global_step,
        losses=tuple(float(entry["loss"]) for entry in history),
        train_loss=sum(last_epoch) / max(len(last_epoch), 1),
        validation_losses=tuple((e["step"], e["eval_loss"]) for e in state.log_history if "eval_loss" in e),
        best_step=best[0] if best else None,
        tokens_per_second=read / max(follow.seconds, 1e-9),
        plan=ready.plan.reason,
        notes=notes,
    )


def peak_memory() -> int:
    """Bytes: of the GPU's memory where there is one, else of this process."""
    if methods.on_gpu():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
