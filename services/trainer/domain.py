"""What may be trained, and under which name. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.datasets import DatasetBuilt
from schemas.tasks import TaskSpec
from shared.errors import StepImpossible
from shared.identity import content_hash


@dataclass(frozen=True)
class Outcome:
    """How a training went. `losses`: mean per answer token, nats, one per step; `train_loss`: of the last epoch.

    `too_long`: rows left out because they are over `max_length`. `seconds`: of the process that finished it; a killed
    one's time is not in it.
    """

    steps: int
    losses: tuple[float, ...]
    too_long: int
    train_loss: float
    seconds: float
    versions: dict[str, str]


def job_name(dataset: DatasetBuilt) -> str:
    """One training per dataset, settings and cycle: a redelivery meets the same job, a new cycle gets its own."""
    settings = dataset.spec.training.model_dump_json()
    return f"{dataset.dataset_id}-{content_hash(settings, dataset.spec.base_model, dataset.cycle_id or '')}"


def check_servable(spec: TaskSpec, max_rank: int) -> None:
    """Raises StepImpossible for an adapter that the fleet could not load: better now than after the training."""
    if spec.training.r > max_rank:
        raise StepImpossible(
            f"the adapter's rank {spec.training.r} is over the fleet's limit of {max_rank}",
            f"Set training.r of {spec.name} to {max_rank} or less, or raise vLLM's --max-lora-rank and "
            "RATCHET_TRAINER_MAX_RANK together.",
        )


def time_left(done: int, total: int, seconds: float) -> str:
    """How long the rest takes at the pace so far, for people: `1 min 20 s left`."""
    if done <= 0:
        return ""
    minutes, rest = divmod(round(seconds / done * (total - done)), 60)
    return f"{minutes} min {rest} s left" if minutes else f"{rest} s left"
