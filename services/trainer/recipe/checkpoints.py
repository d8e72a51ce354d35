"""Checkpoints: when one is written, which is the newest whole one, and the weights of the best evaluation.

A killed training goes on from the newest checkpoint, at any step. The best weights lie beside them: a checkpoint that
only time asked for is not a candidate for them.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open
from torch import distributed
from transformers import TrainerCallback

MAX_SHARE = 0.05
"""Of its steps after which a training writes a checkpoint: `shared.jobs` counts as progress what a job does further."""
MAX_SECONDS = 600.0
MAX_COST = 0.05
"""Of the time, that writing may take: the checkpoint of a large model waits longer."""
CHECKPOINTS, BEST = "checkpoints", "best"


def agreed(value: Any) -> Any:
    """Return the first process's value, in all processes of a training: in the next step each waits for the others."""
    said = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(said)
    return said[0]


class CheckpointSchedule(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Asks for a checkpoint after a twentieth of the steps or ten minutes, whichever comes first."""

    def __init__(self) -> None:
        self._step, self._at, self._cost = 0, time.monotonic(), 0.0
        self._asked = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step, self._at = state.global_step, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = time.monotonic() - self._at
        is_due = state.global_step - self._step >= MAX_SHARE * state.max_steps or seconds >= MAX_SECONDS
        if agreed(is_due and state.global_step < state.max_steps and seconds * MAX_COST >= self._cost):
            control.should_save = True
            self._asked = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step, self._at = state.global_step, time.monotonic()
        self._cost = self._at - self._asked


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint.

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


def keep_best(trainer: Any, folder: Path, step: int, loss: float) -> None:
    """Keep the trainer's weights if no evaluation before had so low a loss. One that is repeated changes nothing."""
    best = read_best(folder)
    if agreed(best is not None and best[1] <= loss):
        return
    scratch = folder / f".{BEST}"
    trainer.save_model(str(scratch))  # Divided weights are gathered: all processes take part.
    if trainer.is_world_process_zero():
        (scratch / "best.json").write_text(json.dumps([step, loss]))
        shutil.rmtree(folder / BEST, ignore_errors=True)
        scratch.rename(folder / BEST)


def read_best(folder: Path) -> tuple[int, float] | None:
    """The step and the loss of the best weights; None: no evaluation yet."""
    try:
        step, loss = json.loads((folder / BEST / "best.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return int(step), float(loss)
