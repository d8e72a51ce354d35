"""What of the machine a training may use: its GPUs are divided among the trainings that may run at a time. Pure but for
`gpus_present` and `available_memory`.

PyTorch takes all that it sees, and spreads a model over what is free at that moment. Two trainings would get into each
other's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
_DRIVER = Path("/proc/driver/nvidia/gpus")
_CONTROL_GROUPS = {  # By the controllers in /proc/self/cgroup: files of the limit and the usage; which of it is cache.
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


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


def available_memory(proc: Path = Path("/proc"), control_groups: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that this process can still take: of the machine, and of each control group that it is in (v1 and v2)."""
    free: list[float] = [_numbers(proc / "meminfo")["MemAvailable:"] * 1024]
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own = control_groups / controllers / path.lstrip("/")
        for group in (own, *own.parents):
            limit, usage, cached = _CONTROL_GROUPS.get(controllers, ("", "", ""))
            if limit and (group / limit).exists() and (most := (group / limit).read_text().strip()) != "max":
                used = int((group / usage).read_text()) - _numbers(group / "memory.stat")[cached]
                free.append(int(most) - used)
    return min(free)


def _numbers(file: Path) -> dict[str, int]:
    """A file of the kernel with a name and a number in each line."""
    return {words[0]: int(words[1]) for line in file.read_text().splitlines() if (words := line.split())}
