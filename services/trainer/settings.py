"""What an operator can set of the trainer."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shared.settings import Settings


class TrainerSettings(Settings):
    trainer_slots: int = Field(
        default=1,
        ge=1,
        description="Trainings at a time on this machine. They share its GPUs, or those of CUDA_VISIBLE_DEVICES.",
    )
    trainer_threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads where the task sets none; unset: as many as are fastest, measured before.",
    )
    trainer_trackers: str = Field(
        default="tensorboard",
        pattern=r"^((tensorboard|mlflow|wandb)(,(tensorboard|mlflow|wandb))*)?$",
        description="Where losses go, comma-separated: tensorboard (files in the job's folder), mlflow "
        "(MLFLOW_TRACKING_URI), wandb (WANDB_API_KEY).",
    )

    trainer_ray: str = Field(
        default="",
        pattern=r"^(auto|ray://.+)?$",
        description="A Ray cluster that runs the trainings: auto, or ray://host:10001; empty: they run on this "
        "machine. All its machines need the home folder.",
    )
    trainer_gpus: int = Field(
        default=0, ge=0, description="GPUs of a training on Ray, which has RATCHET_TRAINER_THREADS."
    )
    trainer_fsdp: bool = Field(
        default=False,
        description="A training's model is divided among all GPUs that it may use (FSDP), a process each; "
        "off: layer by layer.",
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        return tuple(name for name in self.trainer_trackers.split(",") if name)

    @property
    def jobs_folder(self) -> Path:
        return self.home / "jobs" / "trainer"

    @property
    def slots_folder(self) -> Path:
        return self.home / "slots"
