"""The second stage: DPO or KTO (TRL) on answers of which people prefer one, on top of what rows have trained.

    pairs → tokens → the reference's log-probabilities → steps → the pairs that were set aside

The reference is the model as it is when the stage begins. TRL computes its log-probabilities of all answers once, so no
second model is in memory. A killed stage begins with the same model, and goes on from its own last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from schemas.datasets import PreferredAnswer
from schemas.task_settings import TrainingSettings
from services.trainer.domain import TrainingRequest
from services.trainer.pairs import ComparedRows, tokenize_pairs
from services.trainer.plan import preference_rate
from services.trainer.recipe import methods
from services.trainer.recipe.checkpoints import CHECKPOINTS, CheckpointSchedule, last_checkpoint
from services.trainer.recipe.engine import Follow, Packing, Report, score_rows
from shared.identity import content_hash

logger = logging.getLogger(__name__)

STAGE = "preferences"
"""Its folder among the checkpoints."""
STEP_PAIRS = 8
_ANSWERS = 4
"""In memory at once where the task sets no `batch_size`."""
_REFERENCE = "ref"
"""TRL's name for the copy of an adapter that the reference's log-probabilities are computed with."""


@dataclass(frozen=True)
class PreferenceOutcome:
    """The result of the stage. `losses`: by step. `accuracy`: of the `held_out` pairs, the share whose preferred answer
    gained more on the reference than the other one; None: no pair was set aside."""

    method: str
    compared: int
    steps: int = 0
    losses: tuple[float, ...] = ()
    held_out: int = 0
    accuracy: float | None = None

    @property
    def note(self) -> str:
        """What is said of the stage, in a sentence."""
        if not self.compared:
            return f"{self.method}: no pair of answers to prefer yet, trained on rows alone"
        shown = "" if self.accuracy is None else f"; right on {self.accuracy:.0%} of {self.held_out} pairs set aside"
        return f"{self.method} on {self.compared} pairs of answers, {self.steps} steps{shown}"


def align(
    model: Any, tokenizer: Any, request: TrainingRequest, pairs: Sequence[PreferredAnswer], attention: str,
    folder: Path, report: Report,
) -> PreferenceOutcome:  # fmt: skip
    """Train `model`, in place, to prefer what people preferred. `attention`: as of `Packing`.

    Without a pair the model stays as it is: a task's first week has none.
    """
    settings = request.settings
    compared = tokenize_pairs(pairs, tokenizer, settings.max_length)
    if len(compared) < len(pairs):
        logger.warning("%d of %d pairs are too long, or not rendered", len(pairs) - len(compared), len(pairs))
    if settings.preferences.method == "dpo":  # Of two right or two wrong answers none is preferred.
        compared = [pair for pair in compared if pair.chosen is not None]
    training, held_out = _set_aside(compared, settings)
    if not training:
        outcome = PreferenceOutcome(settings.preferences.method, 0)
        logger.warning(outcome.note)
        return outcome
    before = _losses(model, held_out, attention, settings)
    checkpoints = folder / CHECKPOINTS / STAGE
    # Of a model in 4 bits TRL would round the adapter to bfloat16, which knows no step as small as those of this stage.
    model.is_loaded_in_4bit = False
    trainer = _trainer(model, tokenizer, training, settings, checkpoints, Follow(report, checkpoints, lambda: None))
    del model.is_loaded_in_4bit
    if isinstance(model, PeftModel):
        model.delete_adapter(_REFERENCE)  # Its log-probabilities are known by now.
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    after = _losses(model, held_out, attention, settings)
    right = [new[0] - old[0] < new[1] - old[1] for new, old in zip(after, before, strict=True)]
    return PreferenceOutcome(
        method=settings.preferences.method,
        compared=len(training),
        steps=trainer.state.global_step,
        losses=tuple(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry),
        held_out=len(right),
        accuracy=sum(right) / len(right) if right else None,
    )


def _set_aside(
    compared: Sequence[ComparedRows], settings: TrainingSettings
) -> tuple[list[ComparedRows], list[ComparedRows]]:
    """The pairs to train on, shuffled, and those to measure by: all pairs of a prompt together."""

    def drawn(pair: ComparedRows) -> str:
        return content_hash(repr(pair.prompt), str(settings.seed))

    limit = f"{int(settings.validation_share * 0xFFFFFFFF):08x}"
    aside = [pair for pair in compared if pair.chosen is not None and drawn(pair) < limit]
    return [pair for pair in sorted(compared, key=drawn) if pair not in aside], aside


def _losses(
    model: Any, pairs: Sequence[ComparedRows], attention: str, settings: TrainingSettings
) -> list[tuple[float, float]]:
    """The loss of the preferred and of the other answer of each pair."""
    rows = [row for pair in pairs if pair.chosen is not None for row in (pair.chosen, pair.rejected)]
    if not rows:
        return []
    losses, _ = score_rows(model, rows, Packing(rows, settings.max_length, attention), model.device)
    return list(zip(losses[::2], losses[1::2], strict=True))


def _trainer(
    model: Any, tokenizer: Any, pairs: Sequence[ComparedRows], settings: TrainingSettings, checkpoints: Path,
    follow: Follow,
) -> Any:  # fmt: skip
    stage = settings.preferences
    answers = max(2, settings.batch_size or _ANSWERS)
    by_pair = stage.method == "dpo"
    options: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "beta": stage.beta,
        "learning_rate": preference_rate(settings, model.num_parameters()),
        "num_train_epochs": stage.epochs,
        "per_device_train_batch_size": answers // 2 if by_pair else answers,
        "gradient_accumulation_steps": max(1, 2 * STEP_PAIRS // answers),
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_ratio,
        "max_length": None,  # What is longer is not among the pairs.
        "precompute_ref_log_probs": True,
        "train_sampling_strategy": "sequential",  # They are shuffled, and a resumed stage goes on in this order.
        "gradient_checkpointing": methods.on_gpu(),
        "seed": settings.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        **methods.training_arguments(settings),
    }
    given = {"model": model, "processing_class": tokenizer, "callbacks": [follow, CheckpointSchedule()]}
    if by_pair:
        return _Dpo(train_dataset=Dataset.from_list(_preferred(pairs)), args=DPOConfig(**options), **given)
    return _Kto(train_dataset=Dataset.from_list(_judged(pairs, answers)), args=KTOConfig(**options), **given)


def _preferred(pairs: Sequence[ComparedRows]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_ids": list(pair.prompt),
            "chosen_ids": list(chosen.tokens[chosen.start :]),
            "rejected_ids": list(pair.rejected.tokens[pair.rejected.start :]),
        }
        for pair in pairs
        if (chosen := pair.chosen) is not None
    ]


def _judged(pairs: Sequence[ComparedRows], batch: int) -> list[dict[str, Any]]:
    """Single answers, each good or not, those of a pair apart. `KL_completion_ids`: by another one of the batch KTO
    estimates how far the model is from the reference."""
    rows = [
        {"prompt_ids": list(row.tokens[: row.start]), "completion_ids": list(row.tokens[row.start :]), "label": good}
        for pair in pairs
        for row, good in zip(pair.rows, pair.good, strict=True)
    ]
    rows.sort(key=lambda row: content_hash(repr(row)))
    for start in range(0, len(rows), batch):
        together = rows[start : start + batch]
        for row, other in zip(together, [together[-1], *together[:-1]], strict=True):
            row["KL_completion_ids"] = other["completion_ids"]
    return rows


class _Tokens:
    """Takes tokens as they are: `rows.tokenize` writes prompts as they are served, TRL not those of all templates."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class _Dpo(_Tokens, DPOTrainer):  # type: ignore[misc]  # trl is not typed
    pass


class _Kto(_Tokens, KTOTrainer):  # type: ignore[misc]
    pass
