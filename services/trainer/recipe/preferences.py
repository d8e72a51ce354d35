"""The second stage: DPO or KTO (TRL) on answers of which people prefer one, on top of what rows have trained.

    pairs → tokens → the reference's log-probabilities → steps

The reference is the model as it is when the stage begins. TRL computes its log-probabilities of all answers once, so no
second model is in memory. A killed stage begins with the same model, and goes on from its own last checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from schemas.conversation import Answer, Message, Role
from schemas.datasets import Example, PreferredAnswer
from schemas.task_settings import TrainingSettings
from services.trainer.domain import TrainingRequest
from services.trainer.plan import preference_rate
from services.trainer.recipe import methods
from services.trainer.recipe.checkpoints import CHECKPOINTS, CheckpointSchedule, last_checkpoint
from services.trainer.recipe.engine import Follow, Report
from services.trainer.rows import tokenize
from shared.identity import content_hash

PREFERRED = [True, False]
STAGE = "preferences"  # Its folder among the checkpoints.
STEP_PAIRS = 8
_ANSWERS = 4  # In memory at once where the task sets no `batch_size`.
_REFERENCE = "ref"  # TRL's name for the copy of an adapter that the reference's log-probabilities are computed with.


def align(model: Any, tokenizer: Any, request: TrainingRequest, folder: Path, report: Report) -> str:
    """Train `model`, in place, to prefer what people preferred; returns what is said of it.

    Without a pair the model stays as it is: a task's first week has none.
    """
    settings, method = request.settings, request.settings.preferences.method
    rows = tokenize_pairs(request.pairs, tokenizer, settings.max_length)
    if method == "dpo":  # Of two right or two wrong answers none is preferred.
        rows = [row for row in rows if row["good"] == PREFERRED]
    if not rows:
        return f"{method}: no pair of answers to prefer yet, trained on rows alone"
    rows.sort(key=lambda row: content_hash(repr(row), str(settings.seed)))
    checkpoints = folder / CHECKPOINTS / STAGE
    # Of a model in 4 bits TRL would round the adapter to bfloat16, which knows no step as small as those of this stage.
    model.is_loaded_in_4bit = False
    trainer = _trainer(model, tokenizer, rows, settings, checkpoints, Follow(report, checkpoints))
    del model.is_loaded_in_4bit
    if isinstance(model, PeftModel):
        model.delete_adapter(_REFERENCE)  # Its log-probabilities are known by now.
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    return f"{method} on {len(rows)} of {len(request.pairs)} pairs of answers, {trainer.state.global_step} steps"


def tokenize_pairs(pairs: Sequence[PreferredAnswer], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """The pairs as tokens, without those that are too long or that the chat template refuses.

    good: whether each answer is. If only one is, it is the chosen one.
    """
    rows = []
    for pair in pairs:
        answers = pair.answers[::-1] if pair.preferred == "b" else pair.answers
        chosen, rejected = (tokenize(_example(pair, answer), tokenizer) for answer in answers)
        if chosen and rejected and max(len(chosen.tokens), len(rejected.tokens)) <= max_length:
            row = {
                "prompt_ids": list(chosen.tokens[: chosen.start]),
                "chosen_ids": list(chosen.tokens[chosen.start :]),
                "rejected_ids": list(rejected.tokens[rejected.start :]),
                "good": {"both_right": [True, True], "both_wrong": [False, False]}.get(pair.preferred, PREFERRED),
            }
            rows.append(row)
    return rows


def _example(pair: PreferredAnswer, answer: Answer) -> Example:
    message = Message(role=Role.ASSISTANT, content=answer.text or None, tool_calls=answer.tool_calls)
    return Example(
        example_id=pair.correction_ids[0],
        messages=(*pair.prompt, message),
        tools=pair.tools,
        group=pair.correction_ids[0],
        prediction_ids=pair.prediction_ids,
        correction_ids=pair.correction_ids,
    )


def _trainer(
    model: Any, tokenizer: Any, pairs: Sequence[dict[str, Any]], settings: TrainingSettings, checkpoints: Path,
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
        return _Dpo(train_dataset=Dataset.from_list(list(pairs)), args=DPOConfig(**options), **given)
    return _Kto(train_dataset=Dataset.from_list(judged(pairs, answers)), args=KTOConfig(**options), **given)


def judged(pairs: Sequence[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """Single answers, each good or not, those of a pair apart. `KL_completion_ids`: by another one of the batch KTO
    estimates how far the model is from the reference."""
    rows = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[answer], "label": good}
        for pair in pairs
        for answer, good in zip(("chosen_ids", "rejected_ids"), pair["good"], strict=True)
    ]
    rows.sort(key=lambda row: content_hash(repr(row)))
    for start in range(0, len(rows), batch):
        together = rows[start : start + batch]
        for row, other in zip(together, [together[-1], *together[:-1]], strict=True):
            row["KL_completion_ids"] = other["completion_ids"]
    return rows


class _Dpo(DPOTrainer):  # type: ignore[misc]  # trl is not typed
    """Takes tokens as they are: `rows.tokenize` writes prompts as they are served, TRL not those of all templates."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class _Kto(KTOTrainer):  # type: ignore[misc]
    _prepare_dataset = _Dpo._prepare_dataset
