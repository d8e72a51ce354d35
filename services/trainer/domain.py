"""Which trainings are possible, what a job is called, which rows it reads, and what it results in. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

from schemas.datasets import DatasetBuilt
from schemas.tasks import TaskSpec
from shared.errors import StepImpossible
from shared.identity import content_hash


@dataclass(frozen=True)
class SkippedRows:
    """How many rows exceed `max_length`, and how many the base model's chat template does not take."""

    too_long: int = 0
    not_rendered: int = 0

    @property
    def total(self) -> int:
        return self.too_long + self.not_rendered


@dataclass(frozen=True)
class TrainingOutcome:
    """The result of a training.

    `losses` (by step) and `train_loss` (of the last epoch) are means per answer token in nats. `seconds`: of the
    process that finished, without those that were killed before. `dtype`: the data type of the frozen base model.
    """

    steps: int
    losses: tuple[float, ...]
    skipped: SkippedRows
    train_loss: float
    seconds: float
    dtype: str
    versions: dict[str, str]


def job_name(dataset: DatasetBuilt) -> str:
    """Return the job's name, one for each dataset, settings and cycle, so that a redelivery attaches to its job."""
    settings = dataset.spec.training.model_dump_json()
    return f"{dataset.dataset_id}-{content_hash(settings, dataset.spec.base_model, dataset.cycle_id or '')}"


def check_servable(spec: TaskSpec, max_rank: int) -> None:
    """Raise StepImpossible, before any training, for an adapter that vLLM could not load."""
    if spec.training.r > max_rank:
        raise StepImpossible(
            f"the adapter's rank {spec.training.r} is over the fleet's limit of {max_rank}",
            f"Set training.r of {spec.name} to {max_rank} or less, or raise vLLM's --max-lora-rank and "
            "RATCHET_VLLM_MAX_LORA_RANK together.",
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


def check_finite(name: str, value: float, step: int, steps: int) -> None:
    """Raise StepImpossible for a loss, or a gradient, that is no number: the weights are none either, and stay so."""
    if not math.isfinite(value):
        raise StepImpossible(
            f"the training diverged at step {step} of {steps}: its {name} is {value}",
            "Lower training.learning_rate or training.alpha, and check that the base model answers.",
        )


def draw_by_weight(weights: Sequence[float], start: float) -> list[int]:
    """Return as many positions as there are weights, in order, each as often as its weight exceeds the mean.

    Systematic sampling: a weight of 1.3 means is drawn once or twice. `start`, random in [0, 1), decides which; on the
    average over it a position is drawn exactly as often as its weight says.
    """
    cumulative = list(accumulate(weights))
    count = len(cumulative)
    step = cumulative[-1] / count
    return [min(bisect_right(cumulative, (start + number) * step), count - 1) for number in range(count)]


def time_left(done: int, total: int, seconds: float) -> str:
    """Return the time that the rest takes at the pace so far, for people: `1 min 20 s left`."""
    if done <= 0:
        return ""
    minutes, rest = divmod(round(seconds / done * (total - done)), 60)
    return f"{minutes} min {rest} s left" if minutes else f"{rest} s left"
