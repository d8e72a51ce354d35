"""A training over several GPUs of one machine: a process for each, started by `torch.distributed.run`, FSDP among them.

The job's process hands the training over in the job's folder: `distributed.json` in, `outcome.json` or `refused.json`
out. A process that dies takes the others with it; then the job goes on from the last checkpoint.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from schemas.datasets import Example
from schemas.task_settings import Method
from schemas.tasks import TaskSpec
from services.trainer.domain import TrainingOutcome, TrainingRequest
from shared.errors import StepImpossible
from shared.files import write_atomically
from shared.jobs import JobFailure, Progress

_INPUT = TypeAdapter(tuple[TrainingRequest, list[Example]])
_PR_SET_PDEATHSIG = 1


def fsdp_arguments(gpus: int) -> dict[str, Any]:
    """Return the part of `TrainingArguments` that divides weights, gradients and optimizer among GPUs; for one: none.

    Each block of the model is a unit, gathered while it computes (FSDP 2).
    """
    if gpus < 2:
        return {}
    return {"fsdp": True, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}


def check_divisible(spec: TaskSpec) -> None:
    """Raise StepImpossible for a training that several processes cannot share."""
    settings = spec.training
    alone = {
        f"method: {settings.method}": settings.method in (Method.QLORA, Method.FUSION),
        "dora": settings.dora,
        "loraplus_ratio": settings.loraplus_ratio is not None,
        "preferences": settings.preferences.method != "none",
        "sweep_hours": settings.sweep_hours is not None,
    }
    if found := [name for name, is_set in alone.items() if is_set]:
        raise StepImpossible(
            f"{spec.name} trains with {', '.join(found)}, which FSDP does not divide among GPUs",
            "Set RATCHET_TRAINER_FSDP=false: the model is spread over the GPUs layer by layer, in one process.",
        )


def train_distributed(request: TrainingRequest, rows: Sequence[Example], folder: Path) -> TrainingOutcome:
    """Train in as many processes as the request has GPUs. Raises StepImpossible as `recipe.train` does."""
    for name in ("outcome.json", "refused.json"):
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / "distributed.json", _INPUT.dump_json((request, list(rows))))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.gpus}"]
    ended = subprocess.run(
        [*launch, "-m", "services.trainer.distributed", str(folder)],
        preexec_fn=partial(_die_with_parent, signal.SIGTERM),  # Then it ends its processes.
        check=False,
    )
    if (refused := folder / "refused.json").exists():
        failure = JobFailure.model_validate_json(refused.read_bytes())
        raise StepImpossible(failure.reason, failure.way_out)
    if ended.returncode:
        raise RuntimeError(f"the processes of the GPUs ended with {ended.returncode}; the log says why")
    return TrainingOutcome.model_validate_json((folder / "outcome.json").read_bytes())


def _die_with_parent(number: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _process(folder: Path) -> None:
    """Do the part of one GPU: the main function of each process."""
    _die_with_parent(signal.SIGKILL)  # The next attempt writes into the same folder.
    from services.trainer import recipe

    request, rows = _INPUT.validate_json((folder / "distributed.json").read_bytes())
    report: Callable[..., None] = Progress(folder)
    if is_first := os.environ["RANK"] == "0":
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    else:
        request, report = replace(request, trackers=()), lambda *_, **__: None
    try:
        outcome = recipe.train(request, rows, folder, report)
    except StepImpossible as error:
        failure = JobFailure(reason=error.reason, way_out=error.way_out)
        write_atomically(folder / "refused.json", failure.model_dump_json().encode())
        raise
    if is_first:
        write_atomically(folder / "outcome.json", outcome.model_dump_json().encode())


if __name__ == "__main__":
    _process(Path(sys.argv[1]))
