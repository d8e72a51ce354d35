"""What this machine can do, measured: operations a second, by which number of threads, and the energy that is used."""

from __future__ import annotations

import json
import os
import time
from importlib.util import find_spec
from pathlib import Path

import torch

from services.trainer.plan import ModelShape
from shared.files import write_atomically

_SECONDS = 0.3
_TOKENS = 512
_MARGIN = 1.1
"""How much faster more threads must be: they wait for each other while another program has a core."""


def measure_speed(folder: Path, shape: ModelShape, dtype: torch.dtype, threads: int | None = None) -> tuple[int, float]:
    """Set PyTorch's number of threads to `threads`, or else to the fastest; returns it, and operations a second.

    It is measured once for each job, in whose folder it is kept: with other threads a resumed training would end with
    other weights.
    """
    file = folder / "speed.json"
    if not file.exists():
        write_atomically(file, json.dumps(_measure(shape, dtype, threads)).encode())
    number, flops = json.loads(file.read_text())
    torch.set_num_threads(number)
    return number, flops


def _measure(shape: ModelShape, dtype: torch.dtype, threads: int | None) -> tuple[int, float]:
    """Try one thread, all cores but one, and all; for `threads`, and where a GPU does the work, one number alone."""
    cores = os.cpu_count() or 1
    only = threads or (torch.get_num_threads() if torch.cuda.is_available() else None)
    best, flops = 1, 0.0
    for number in [only] if only else sorted({1, max(1, cores - 1), cores}):
        torch.set_num_threads(number)
        if (measured := product_speed(shape, dtype)) > _MARGIN * flops:
            best, flops = number, measured
    return best, flops


def product_speed(shape: ModelShape, dtype: torch.dtype) -> float:
    """Operations a second of the largest product of matrices in a block of the model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = torch.randn(_TOKENS, shape.hidden, dtype=dtype, device=device)
    weights = torch.randn(shape.hidden, shape.intermediate, dtype=dtype, device=device)
    count, started = -1, 0.0
    while count < 0 or time.perf_counter() - started < _SECONDS:  # The first product only warms up.
        (tokens @ weights)[0, 0].item()  # Waits for a GPU.
        count, started = count + 1, started or time.perf_counter()
    return 2.0 * _TOKENS * shape.hidden * shape.intermediate * count / (time.perf_counter() - started)


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
