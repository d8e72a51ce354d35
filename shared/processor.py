"""What this machine's processor computes fast."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""The kernel's names of the instructions: of x86 (two) and of ARM."""


@cache
def has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return True if the processor has instructions for bfloat16, by the kernel's list; False if there is no list.

    With them bfloat16 is three times as fast as float32. Without them it is emulated: a step of training took 24 times
    as long as in float32, an answer of vLLM 2.5 times (AMD EPYC 7003, one thread, SmolLM2-135M-Instruct).
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    return any(_BFLOAT16.intersection(line.split()) for line in lines if line.lower().startswith(("flags", "features")))
