"""What a training takes of the machine: memory, hours and price, said and refused before it starts; energy, counted.

longest pass of the rows → memory        operations → hours, at the speed that is measured here → price
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from schemas.task_settings import Method
from schemas.tasks import TaskSpec
from services.trainer.devices import available_memory
from services.trainer.domain import TrainingRequest, TrainingRow
from services.trainer.memory import Device, MemoryEstimate, PassSize, check_memory, estimate
from services.trainer.plan import ModelShape, Plan
from services.trainer.recipe import methods
from services.trainer.recipe.packing import divide, shared_prompt
from shared.errors import StepImpossible
from shared.files import write_atomically
from shared.model.prices import PriceList, money

EFFICIENCY = 0.5  # The share of the speed of one large product of matrices that a training reaches.
_SECONDS, _TOKENS = 0.3, 512  # How long a product is timed, and of how many tokens it is.
_MARGIN = 1.1  # How much faster more threads must be: they wait for each other while another program has a core.


def check_memory_for(request: TrainingRequest, shape: ModelShape, plan: Plan, rows: Sequence[TrainingRow]) -> None:
    """Raise StepImpossible if the training takes more than is free now, beside what this process has already."""
    needed = memory_needed(request, shape, plan, rows)
    free = available_memory()
    if methods.on_gpu():  # The model is spread over all that this process sees.
        free = sum(torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count()))
    check_memory(replace(needed, parts={**needed.parts, "libraries": 0.0}), free, request.spec)


def memory_needed(
    request: TrainingRequest, shape: ModelShape, plan: Plan, rows: Sequence[TrainingRow]
) -> MemoryEstimate:
    """The estimate for the longest pass of the longest rows that may meet in a step."""
    prefix = 0 if methods.has_flash_attention() else shared_prompt(rows)
    longest = sorted(rows, key=lambda row: len(row.tokens))[-plan.step_rows :]
    batch = 1 if request.settings.method is Method.FUSION else plan.batch_size  # Fusion measures losses alone.
    passes = divide(longest, prefix, batch * request.settings.max_length)
    size = max((PassSize.of_rows(chosen, prefix) for chosen in passes), key=lambda size: size.tokens)
    device = Device(methods.on_gpu(), methods.compute_dtype() is torch.bfloat16)
    return estimate(shape, request.settings, plan.dropout, size, device)


def measure_speed(folder: Path, shape: ModelShape, dtype: torch.dtype, threads: int | None = None) -> tuple[int, float]:
    """Set PyTorch's number of threads to `threads`, or else to the fastest; returns it, and operations a second.

    One thread, all cores but one, and all are tried, where no GPU does the work. It is measured once for each job, in
    whose folder it is kept: with other threads a resumed training would end with other weights.
    """
    file = folder / "speed.json"
    if not file.exists():
        cores = os.cpu_count() or 1
        only = threads or (torch.get_num_threads() if torch.cuda.is_available() else None)
        best, flops = 1, 0.0
        for number in [only] if only else sorted({1, max(1, cores - 1), cores}):
            if (measured := product_speed(shape, dtype, number)) > _MARGIN * flops:
                best, flops = number, measured
        write_atomically(file, json.dumps([best, flops]).encode())
    number, flops = json.loads(file.read_text())
    torch.set_num_threads(number)
    return number, flops


def product_speed(shape: ModelShape, dtype: torch.dtype, threads: int) -> float:
    """Operations a second of the largest product of matrices in a block of the model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = torch.randn(_TOKENS, shape.hidden, dtype=dtype, device=device)
    weights = torch.randn(shape.hidden, shape.intermediate, dtype=dtype, device=device)
    timer = Timer("tokens @ weights", globals={"tokens": tokens, "weights": weights}, num_threads=threads)
    seconds: float = timer.blocked_autorange(min_run_time=_SECONDS).median
    return 2.0 * _TOKENS * shape.hidden * shape.intermediate / seconds


def training_flops(
    shape: ModelShape,
    method: Method,
    plan: Plan,
    rows: Sequence[TrainingRow],
    prefix: int = 0,
    recomputes: bool = False,
) -> float:
    """Floating-point operations of a training.

    prefix: tokens of a prompt that all rows share and each step computes once. recomputes: whether the forward pass is
    done again for the gradient (gradient checkpointing). Weights that are frozen need no gradient of their own.
    Attention's own products are left out: of rows of 2,048 tokens a third with a model of 135 million parameters, a
    twentieth with one of 8 billion.
    """
    steps = math.ceil(len(rows) / plan.step_rows)
    tokens = sum(len(row.tokens) - prefix for row in rows) + prefix * steps
    answers = sum(row.answer_tokens for row in rows)  # Of these alone the head computes logits.
    products = shape.layers * shape.layer_parameters * tokens + shape.vocabulary * shape.hidden * answers
    return plan.epochs * products * (4 + 2 * (method is Method.FULL) + 2 * recomputes)


def check_cost(flops: float, speed: float, gpus: int, cores: int, prices: PriceList, spec: TaskSpec) -> str:
    """Return what a training takes and costs, for people. `speed`: measured, of one GPU, or, without GPUs, of `cores`.

    Raises StepImpossible if that is more GPU-hours, or hours on a CPU, than the task allows.
    """
    hours = flops / (EFFICIENCY * speed) / 3_600  # Of one GPU: more of them take as many GPU-hours.
    price = prices.gpu_hour if gpus else prices.cpu_hour
    amount = money(hours * (1 if gpus else cores) * price.price, prices.currency)
    unit = "GPU-hours" if gpus else "hours on a CPU"
    said = f"about {hours:.2g} {unit}, {amount} (prices of {price.as_of})"
    limit = spec.training.max_gpu_hours
    if limit is not None and hours > limit:
        raise StepImpossible(
            f"the training would take {said}; training.max_gpu_hours is {limit:g}",
            f"Lower training.epochs of {spec.name}, name a smaller base model, or raise training.max_gpu_hours.",
        )
    return said


class EnergyMeter:
    """Counts the energy of the GPUs that PyTorch sees, or else of the processor, where the machine tells it."""

    def __init__(self, powercap: Path = Path("/sys/class/powercap")) -> None:
        self._powercap = powercap
        self._last, self._joules = self._counters(), 0.0

    def joules(self) -> float | None:
        """Return what was used since the meter was made; None: nothing can be read.

        To be called every few minutes: a processor's counter starts over after 262 kJ, or what its maximum is.
        """
        now = self._counters()
        self._joules += sum((at - self._last[name][0]) % limit for name, (at, limit) in now.items()) / 1e6
        self._last = now
        return self._joules if now else None

    def _counters(self) -> dict[str, tuple[int, int]]:
        """Microjoules so far, and where the counter starts over, of each device."""
        if torch.cuda.is_available() and find_spec("pynvml"):
            import pynvml as nvml

            nvml.nvmlInit()
            names = [f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in range(torch.cuda.device_count())]
            handles = {name: nvml.nvmlDeviceGetHandleByUUID(name) for name in names}
            return {name: (1_000 * nvml.nvmlDeviceGetTotalEnergyConsumption(h), 2**63) for name, h in handles.items()}
        files = [zone / "energy_uj" for zone in self._powercap.glob("intel-rapl:?")]
        return {
            str(file): (int(file.read_text()), int(file.with_name("max_energy_range_uj").read_text()))
            for file in files
            if os.access(file, os.R_OK)  # By default for root alone.
        }
