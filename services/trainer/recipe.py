"""The LoRA recipe: TRL's SFTTrainer on the tokens of `rows.py`, the loss on the answer's only.

The base model stays frozen in bfloat16, on a GPU if there is one; in float32 on a processor that emulates bfloat16. TRL
computes the language-model head for the answer's tokens alone, which with a short answer saves four fifths of a small
model's work. Batches hold rows of similar length. A row of twice the weight of another is read twice as often: a loss
of our own would get all logits, whose cost TRL saves. Every epoch ends with a checkpoint, from which a killed process
resumes.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import peft
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from trl import SFTConfig, SFTTrainer

from schemas.datasets import Example
from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskSpec
from services.trainer.domain import TrainingOutcome, check_finite, check_modules, draw_by_weight, time_left
from services.trainer.rows import tokenize_rows
from shared.errors import StepImpossible
from shared.processor import has_bfloat16

logger = logging.getLogger(__name__)

Report = Callable[[float, float, str], None]


def train(
    rows: Sequence[Example], spec: TaskSpec, base: str, folder: Path, report: Report, threads: int | None = None
) -> TrainingOutcome:
    """Train on `rows` and write the adapter to `folder/adapter`; checkpoints are in `folder/checkpoints`.

    `base` is a folder or a name on the Hugging Face hub. Raises StepImpossible if the model cannot be loaded, or has
    not the modules that are to be trained, if no row can be trained on, or if the loss is no number any more.
    """
    on_gpu = torch.cuda.is_available()
    threads = spec.training.threads or threads or (None if on_gpu else default_threads())
    if threads:
        torch.set_num_threads(threads)
    started = time.monotonic()
    report(0, 1, "loading the base model")
    dtype = torch.bfloat16 if on_gpu or has_bfloat16() else torch.float32
    model, tokenizer = _load(base, on_gpu, dtype)
    check_modules(spec, [name for name, _ in model.named_modules()])
    fitting, weights, skipped = tokenize_rows(rows, tokenizer, spec)
    checkpoints = folder / "checkpoints"
    progress = _Progress(report)
    trainer = _Trainer(
        weights,
        model=model,
        args=_arguments(spec.training, checkpoints, on_gpu, dtype),
        train_dataset=Dataset.from_list(fitting),
        processing_class=tokenizer,
        peft_config=_lora(spec.training),
        callbacks=[progress],
    )
    resumed = last_checkpoint(checkpoints)
    if resumed is not None:
        logger.info("resuming from %s", resumed)
    trainer.train(resume_from_checkpoint=resumed)
    _save(trainer, folder / "adapter", spec.base_model)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = tuple(float(entry["loss"]) for entry in history)
    last_epoch = [float(entry["loss"]) for entry in history if entry["epoch"] > trainer.state.epoch - 1]
    return TrainingOutcome(
        steps=trainer.state.global_step,
        losses=losses,
        skipped=skipped,
        train_loss=sum(last_epoch) / max(len(last_epoch), 1),
        seconds=time.monotonic() - started,
        dtype=str(dtype).removeprefix("torch."),
        versions={module.__name__: module.__version__ for module in (torch, transformers, trl, peft)},
    )


def default_threads() -> int:
    """Return all cores but one.

    OpenMP's threads wait for each other by spinning, so a step that shares all its cores with another program takes
    twenty times as long, not twice (measured on two cores: 2 s with one thread, 45 s with two).
    """
    return max(1, (os.cpu_count() or 1) - 1)


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint.

    Its `trainer_state.json` is written last. Where the whole machine stopped, the files before it may lack their ends,
    too: the trainer does not wait until they are on the disk.
    """
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_whole(path.parent)]
    newest = max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return str(newest) if newest else None


def _is_whole(checkpoint: Path) -> bool:
    """Return False if the end of a file is missing."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
        for weights in checkpoint.glob("*.safetensors"):
            with safe_open(weights, framework="pt"):  # Its header says how long the file is.
                pass
    except (ValueError, SafetensorError):
        return False
    return all(is_zipfile(state) for state in checkpoint.glob("*.pt*"))  # A zip file ends with its directory.


def _load(base: str, on_gpu: bool, dtype: torch.dtype) -> tuple[Any, Any]:
    placement = {"device_map": "auto"} if on_gpu else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **placement)
    except OSError as error:  # transformers raises it for a model that does not exist or may not be read.
        raise StepImpossible(
            f"the base model {base} cannot be loaded: {error}",
            "Put it into <home>/models under its name, or check its name and your access on the Hugging Face hub.",
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _lora(settings: TrainingSettings) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=sorted(settings.target_modules),
        bias="none",
    )


def _arguments(settings: TrainingSettings, checkpoints: Path, on_gpu: bool, dtype: torch.dtype) -> SFTConfig:
    return SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        max_length=settings.max_length,
        completion_only_loss=True,
        train_sampling_strategy="group_by_length",
        gradient_checkpointing=on_gpu,
        bf16=dtype is torch.bfloat16,
        use_cpu=not on_gpu,
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # It would report 0 for a loss that is no number.
        save_strategy="epoch",
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
    )


def _save(trainer: SFTTrainer, folder: Path, base_model: str) -> None:
    """Save weights and configuration. The base model gets its served name, which vLLM's filesystem resolver demands."""
    trainer.model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # An empty model card template.
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_model
    config["target_modules"] = sorted(
        config["target_modules"]
    )  # PEFT uses a set, whose order differs between processes.
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


class _Trainer(SFTTrainer):  # type: ignore[misc]  # trl is not typed
    """TRL's trainer, which reads rows by their weights. Rows of equal weights it reads as TRL does."""

    def __init__(self, weights: Sequence[float], **options: Any) -> None:
        self._weights = weights
        super().__init__(**options)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if len(set(self._weights)) == 1:
            return super()._get_train_sampler(train_dataset)
        return WeightedSampler(self.args.train_batch_size, self.train_dataset, self._weights)


class WeightedSampler(LengthGroupedSampler):  # type: ignore[misc]  # transformers is not typed
    """Draws the rows of each epoch by their weights, as many as there are, in batches of similar length.

    Chance is PyTorch's own, which the trainer seeds, and which a checkpoint restores.
    """

    def __init__(self, batch_size: int, rows: Any, weights: Sequence[float]) -> None:
        super().__init__(batch_size, dataset=rows, model_input_name="input_ids")
        self._weights = weights

    def __iter__(self) -> Iterator[int]:
        shuffled = torch.randperm(len(self._weights)).tolist()
        drawn = draw_by_weight([self._weights[row] for row in shuffled], torch.rand(()).item())
        rows = [shuffled[position] for position in drawn]
        order = get_length_grouped_indices([self.lengths[row] for row in rows], self.batch_size)
        return iter([rows[position] for position in order])


class _Progress(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Reports steps, loss and the time left. The pace of a resumed training counts from the step it resumed at."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        # Of a gradient that is no number the next loss is none; after the last step there is no next one.
        for name, value in (("loss", logs["loss"]), ("gradient", logs.get("grad_norm", 0.0))):
            check_finite(name, float(value), state.global_step, state.max_steps)
        elapsed = time.monotonic() - self._started
        left = time_left(state.global_step - self._first_step, state.max_steps - self._first_step, elapsed)
        message = f"step {state.global_step} of {state.max_steps}, loss {float(logs['loss']):.3f}, {left}"
        self._report(state.global_step, state.max_steps, message)
