"""Which GPUs a training may use: those of the machine are divided among the trainings that may run at a time. Pure but
for `gpus_present`.

PyTorch takes all that it sees, and spreads a model over what is free at that moment. Two trainings would get into each
other's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
_DRIVER = Path("/proc/driver/nvidia/gpus")


def gpus_of_slot(slot: int, slots: int, visible: str | None, present: int) -> str | None:
    """Return the value of `CUDA_VISIBLE_DEVICES` for a training; None: as it is.

    slot: its number, from 0, of `slots`; visible: the value that an operator has set; present: GPUs of the machine.
    Where there are fewer GPUs than slots, several trainings share one.
    """
    devices: Sequence[str] = [str(number) for number in range(present)]
    if visible is not None:
        devices = [name.strip() for name in visible.split(",") if name.strip()]
    if slots == 1 or not devices:
        return None
    return ",".join(devices[slot::slots] or [devices[slot % len(devices)]])


def gpus_present(driver: Path = _DRIVER) -> int:
    """Return how many GPUs NVIDIA's driver shows here, without loading anything of them."""
    try:
        return sum(1 for _ in driver.iterdir())
    except OSError:
        return 0
