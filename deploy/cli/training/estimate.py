"""`ratchet train --estimate`: how much memory each method takes, and whether this machine has it. Loads no model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from deploy.cli.output import say, show_blocks, warn
from schemas.task_settings import FusionSettings, Method, TrainingSettings
from schemas.tasks import TaskSpec
from services.trainer.devices import available_memory, gpus_present
from services.trainer.memory import GIB, Device, MemoryEstimate, PassSize, estimate
from services.trainer.plan import SMALL_MODEL, ModelShape, resolve
from shared.errors import ConfigurationError
from shared.processor import has_bfloat16
from shared.report.blocks import Table

LLAMA_8B = ModelShape(
    model_type="llama", layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_width=128,
    vocabulary=128256, is_tied=False, is_quantised=False,
)  # fmt: skip
"""Of Llama 3.1 8B: what is said where no task is named."""
PRACTICE = {Method.FULL: "60 and more", Method.LORA: "16–24", Method.QLORA: "6–10", Method.FUSION: "20–30"}
"""GiB that practitioners reckon with for a model of 7–8 billion parameters."""
METHODS = (Method.LORA, Method.QLORA, Method.FULL, Method.FUSION)
GPU = Device(is_gpu=True)
_PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "libraries")


def show_estimate(spec: TaskSpec | None, rows: int, models_folder: Path, max_rank: int) -> None:
    """Print the memory of the task's training by each method; of None that of a model with 8 billion parameters.

    rows: of its data set. max_rank: the fleet's limit for adapters. Raises ConfigurationError if the base model is not
    in `models_folder`.
    """
    if spec is None:
        _show_example()
        return
    shape, settings = _read_shape(models_folder / spec.base_model), spec.training
    batch = min(resolve(_with(settings, Method.LORA), shape, rows).batch_size, rows)
    places = {"GPU": (GPU, _free_on_gpus())}
    if shape.parameters < SMALL_MODEL:
        places["CPU"] = (Device(is_gpu=False, has_bfloat16=has_bfloat16()), available_memory())
    cells = []
    for method in METHODS:
        for place, (device, free) in places.items():
            needed = needed_by(method, shape, settings, rows, device)
            here = "none" if free is None else "yes" if needed.total <= free else "too little"
            marked = method.value + (" (this task)" if method is settings.method else "")
            cells.append((marked, place, *_cells(needed), here))
    title = _title(spec.base_model, shape, batch, settings)
    show_blocks(Table(("method", "on", *_PARTS, "total", "here"), cells, title))
    free_here = [f"{place} {free / GIB:.1f}" for place, (_, free) in places.items() if free is not None]
    say(f"Free on this machine, GiB: {', '.join(free_here)}")
    say("Rows that are shorter take less: a training counts its own before it loads the model, and refuses in words.")
    if settings.r > max_rank and settings.is_adapter:
        warn(f"The rank {settings.r} is over the fleet's limit of {max_rank}: vLLM would not serve the adapter.", "red")


def needed_by(
    method: Method, shape: ModelShape, settings: TrainingSettings, rows: int, device: Device
) -> MemoryEstimate:
    """The estimate of a method with a task's other settings, for rows as long as `max_length` lets through.

    Fusion only measures the loss, of one such row at a time.
    """
    plan = resolve(_with(settings, Method.LORA), shape, rows)
    batch = 1 if method is Method.FUSION else min(plan.batch_size, rows)
    size = PassSize.at_most(batch, settings.max_length)
    return estimate(shape, _with(settings, method), plan.dropout, size, device)


def _with(settings: TrainingSettings, method: Method) -> TrainingSettings:
    """A task's settings with another method; of fusion with two adapters where it names none."""
    fusion = settings.fusion if settings.fusion.adapters else FusionSettings(adapters=("first", "second"))
    return settings.model_copy(update={"method": method, "fusion": fusion})


def _show_example() -> None:
    """Print the table of `docs/training.md`: four rows at once, and one, beside what practice reckons with."""
    settings = {rows: TrainingSettings(batch_size=rows) for rows in (4, 1)}
    title = _title("Llama 3.1 8B", LLAMA_8B, 4, settings[4])
    cells = []
    for method in METHODS:
        four, one = (needed_by(method, LLAMA_8B, settings[rows], 10_000, GPU) for rows in (4, 1))
        cells.append((method.value, *_cells(four), f"{one.total / GIB:.1f}", PRACTICE[method]))
    show_blocks(Table(("method", *_PARTS, "total", "total, 1 row", "practice"), cells, title))
    say("With a task, of its base model on this machine: ratchet train TASK --estimate")


def _title(name: str, shape: ModelShape, rows: int, settings: TrainingSettings) -> str:
    size = f"{shape.parameters / 1e9:.2f} billion parameters"
    return f"{name}, {size}: GiB of memory at {rows} × {settings.max_length:,} tokens, rank {settings.r}"


def _cells(needed: MemoryEstimate) -> list[str]:
    return [f"{value / GIB:.1f}" for value in (*(needed.parts[part] for part in _PARTS), needed.total)]


def _read_shape(model: Path) -> ModelShape:
    try:
        return ModelShape.from_config(json.loads((model / "config.json").read_bytes()))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"the base model is not at {model}", "Put it there, by its name; of the local stack: ratchet install"
        ) from error


def _free_on_gpus() -> float | None:
    """Bytes, by NVIDIA's driver; None: no GPU here."""
    if not gpus_present():
        return None
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    return sum(map(int, subprocess.run(query, check=True, capture_output=True, text=True).stdout.split())) * 2.0**20
