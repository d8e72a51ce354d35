"""Which trainings are possible, what a job is called, which rows it reads, and what it results in. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from schemas.datasets import DatasetBuilt, Example, PreferredAnswer
from schemas.task_settings import Method, TrainingSettings
from schemas.tasks import TaskSpec
from shared.errors import StepImpossible
from shared.identity import content_hash

_MEMORY_ERRORS = ("out of memory", "can't allocate memory", "not enough memory")


class SkippedRows(BaseModel):
    """How many rows exceed `max_length`, and how many the base model's chat template does not take."""

    too_long: int = 0
    not_rendered: int = 0

    @property
    def total(self) -> int:
        return self.too_long + self.not_rendered


@dataclass(frozen=True)
class TrainingRow:
    """A row as tokens. `start`: where its answer begins. `group`: of near-copies. `weight`: 1 counts as usual."""

    tokens: tuple[int, ...]
    start: int
    weight: float = 1.0
    group: str = ""

    @property
    def answer_tokens(self) -> int:
        return len(self.tokens) - self.start


@dataclass(frozen=True)
class TrainingRequest:
    """What the recipe is to train. `base`: a folder, or a name on the Hugging Face hub.

    `start`: folder of the adapter to go on from; None: the base model. `fused`: of those that `method: fusion` merges.
    `pairs`: answers of which people prefer one. `prices_file`: None: the shipped prices. `gpus`: those over which
    FSDP divides the model; 1: no FSDP.
    """

    spec: TaskSpec
    base: str
    threads: int | None = None
    start: Path | None = None
    fused: tuple[Path, ...] = ()
    pairs: tuple[PreferredAnswer, ...] = ()
    trackers: tuple[str, ...] = ()
    prices_file: Path | None = None
    gpus: int = 1

    @property
    def settings(self) -> TrainingSettings:
        return self.spec.training

    @property
    def parents(self) -> tuple[str, ...]:
        """The names of the adapters that it goes on from, or merges."""
        return tuple(folder.name for folder in (self.start, *self.fused) if folder is not None)


class TrainingOutcome(BaseModel):
    """The result of a training.

    `losses` (by step) and `train_loss` (of the last epoch) are means per answer token in nats, and so are
    `validation_losses` (step and loss), on rows set aside; the weights are those of `best_step`. `seconds`: of the
    process that finished, without those that were killed before; `tokens_per_second`, `peak_memory` (bytes, on a GPU of
    its memory) and `joules` (None: not readable) are of the same. `dtype`: the data type of the base model.
    """

    steps: int
    losses: tuple[float, ...]
    train_loss: float
    skipped: SkippedRows = SkippedRows()
    seconds: float = 0.0
    dtype: str = ""
    versions: dict[str, str] = {}
    validation_losses: tuple[tuple[int, float], ...] = ()
    best_step: int | None = None
    tokens_per_second: float = 0.0
    peak_memory: int = 0
    joules: float | None = None
    plan: str = ""
    notes: tuple[str, ...] = ()

    @property
    def validation_loss(self) -> float | None:
        return min((loss for _, loss in self.validation_losses), default=None)


def job_name(dataset: DatasetBuilt) -> str:
    """Return the job's name, one for each dataset, settings and cycle, so that a redelivery attaches to its job."""
    settings = dataset.spec.training.model_dump_json()
    return f"{dataset.dataset_id}-{content_hash(settings, dataset.spec.base_model, dataset.cycle_id or '')}"


def check_servable(spec: TaskSpec, max_rank: int) -> None:
    """Raise StepImpossible, before any training, for an adapter that vLLM could not load.

    A model of its own has no rank, and that of merged adapters is theirs (`inputs.py`).
    """
    settings = spec.training
    if settings.is_adapter and settings.method is not Method.FUSION and settings.r > max_rank:
        raise StepImpossible(
            f"the adapter's rank {settings.r} is over the fleet's limit of {max_rank}",
            f"Set training.r of {spec.name} to {max_rank} or less, or raise vLLM's --max-lora-rank and "
            "RATCHET_VLLM_MAX_LORA_RANK together.",
        )


def check_divisible(spec: TaskSpec) -> None:
    """Raise StepImpossible for a training that FSDP does not divide among GPUs."""
    settings = spec.training
    undivided = {
        f"method: {settings.method}": settings.method in (Method.QLORA, Method.FUSION),
        "dora": settings.dora,
        "loraplus_ratio": settings.loraplus_ratio is not None,
        "preferences": settings.preferences.method != "none",
        "sweep_hours": settings.sweep_hours is not None,
    }
    if found := [name for name, is_set in undivided.items() if is_set]:
        raise StepImpossible(
            f"FSDP does not divide what {spec.name} trains with: {', '.join(found)}",
            "Set RATCHET_TRAINER_FSDP=false: the model is spread over the GPUs layer by layer, in one process.",
        )


def check_modules(spec: TaskSpec, modules: Collection[str]) -> None:
    """Raise StepImpossible if the base model has not all modules that the task trains. `modules`: its modules' paths.

    PEFT, which goes by the ends of paths, passes over those that are missing as long as there is one.
    """
    ends = [f".{path}" for path in modules]
    missing = [name for name in spec.training.target_modules if not any(end.endswith(f".{name}") for end in ends)]
    if missing:
        raise StepImpossible(
            f"{spec.base_model} has no module named {', '.join(missing)}",
            f"Set training.target_modules of {spec.name} to names that the base model has.",
        )


def check_labels(rows: Sequence[Example], spec: TaskSpec) -> None:
    """Raise StepImpossible for an answer that is no label of the task: it had others when the data set was built."""
    unknown = sorted({row.answer for row in rows} - set(spec.choices)) if spec.choices else []
    if unknown:
        raise StepImpossible(
            f"the label set changed: the data set has {', '.join(unknown[:5])}, which {spec.name} does not have",
            f"Build the data set again: ratchet cycle {spec.name}. `renamed_labels` carries old answers over.",
        )


def check_start(config: Path, spec: TaskSpec) -> None:
    """Raise StepImpossible if a training cannot go on from the adapter with this `adapter_config.json`."""
    found = json.loads(config.read_bytes())
    wanted = {"base_model_name_or_path": spec.base_model, "r": spec.training.r, "lora_alpha": spec.training.alpha}
    other = [f"{name} {found.get(name)!r}, not {value!r}" for name, value in wanted.items() if found.get(name) != value]
    if set(found.get("target_modules") or ()) != set(spec.training.target_modules):
        other.append("other target_modules")
    if not spec.training.is_adapter:
        other.append("an adapter's weights, not a model's")
    if other:
        raise StepImpossible(
            f"the adapter that serves cannot be trained further as {spec.name} says: it has {'; '.join(other)}",
            f"Set training.start_from of {spec.name} to base, or r, alpha and target_modules as they were.",
        )


def check_finite(name: str, value: float, step: int, steps: int) -> None:
    """Raise StepImpossible for a loss, or a gradient, that is no number: the weights are none either, and stay so."""
    if not math.isfinite(value):
        raise StepImpossible(
            f"the training diverged at step {step} of {steps}: its {name} is {value}",
            "Lower training.learning_rate or training.alpha, and check that the base model answers.",
        )


def out_of_memory(error: Exception, spec: TaskSpec) -> StepImpossible | None:
    """An error in words, if it says that memory did not suffice; PyTorch's is a RuntimeError, on a GPU and without."""
    if not (isinstance(error, MemoryError) or any(words in str(error) for words in _MEMORY_ERRORS)):
        return None
    said = str(error).partition("\n")[0] or "none is left"
    return StepImpossible(
        f"memory did not suffice to train {spec.base_model}: {said}",
        f"Lower training.batch_size of {spec.name} (raise training.accumulation as much), then training.max_length; "
        f"or, on a GPU, set training.method: qlora. `ratchet train {spec.name} --estimate` says what each needs.",
    )


def time_left(done: int, total: int, seconds: float) -> str:
    """Return the time that the rest takes at the pace so far, for people: `1 min 20 s left`."""
    if done <= 0:
        return ""
    minutes, rest = divmod(round(seconds / done * (total - done)), 60)
    return f"{minutes} min {rest} s left" if minutes else f"{rest} s left"
