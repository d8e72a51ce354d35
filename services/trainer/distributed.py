"""A training over several GPUs of one machine, by FSDP: a process for each. They write into the job's folder."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from schemas.datasets import Example
from services.trainer.domain import TrainingOutcome, TrainingRequest
from shared.errors import StepImpossible
from shared.files import write_atomically
from shared.jobs import JobFailure, Progress


def fsdp_arguments(gpus: int) -> dict[str, Any]:
    """Return the part of `TrainingArguments` that divides weights, gradients and optimizer among GPUs; for one: none.

    Each block of the model is a unit, gathered while it computes (FSDP 2).
    """
    if gpus < 2:
        return {}
    return {"fsdp": True, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}


def train_distributed(request: TrainingRequest, rows: Sequence[Example], folder: Path) -> TrainingOutcome:
    """Train in as many processes as the request has GPUs. If one dies, all end, and the job's process with them.

    Then `shared.jobs` starts it again, or reads why it cannot go on.
    """
    from accelerate.utils.other import get_free_port  # type: ignore[import-untyped]  # Loads torch.
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, spawn

    try:
        spawn(_process, (get_free_port(), request, list(rows), folder), request.gpus, daemon=True)
    except (ProcessExitedException, ProcessRaisedException) as error:
        raise SystemExit(str(error)) from error
    return TrainingOutcome.model_validate_json((folder / "outcome.json").read_bytes())


def _process(rank: int, port: int, request: TrainingRequest, rows: Sequence[Example], folder: Path) -> None:
    """Do the part of one GPU. The first process reports, and writes the outcome."""
    from services.trainer import recipe

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # PyTorch has it sent when the parent dies: to end at once.
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request.gpus, "MASTER_ADDR": "localhost"}
    os.environ.update({name: str(value) for name, value in (place | {"MASTER_PORT": port}).items()})
    own = request if rank == 0 else replace(request, trackers=())
    try:
        outcome = recipe.train(own, rows, folder, Progress(folder) if rank == 0 else lambda *_, **__: None)
    except StepImpossible as error:
        failure = JobFailure(reason=error.reason, way_out=error.way_out)
        write_atomically(folder / "failure.json", failure.model_dump_json().encode())
        raise
    if rank == 0:
        write_atomically(folder / "outcome.json", outcome.model_dump_json().encode())
