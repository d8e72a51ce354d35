"""A vLLM plugin for CPUs: LoRA ten times faster, no adapter in the base model's answers, half the processor time.

**LoRA.** vLLM's CPU path copies an adapter's whole matrix once *per token* before it multiplies, so an adapter's answer
costs twelve times the base's. Its row index for "no adapter" is -1, which PyTorch reads as *the last slot*: in
a batch of base and adapter requests, the base's rows get that slot's adapter. The plugin groups the rows of a
batch by adapter and multiplies each group once, which fixes both.

**Waiting.** vLLM's engine and its worker wait for each other by spinning until a second after the last message: good
where each has a core of its own. On two cores that everything shares, one answer a second kept 1.5 of them busy; with
short sleeps it is 0.65, and answers take as long as before.

Loaded by vLLM through the entry point in the folder beside this file; `VLLM_PLUGINS` must name it and
`PYTHONPATH` must hold this folder. Written against vLLM 0.32; where what it patches is absent, it logs a
warning and changes nothing.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

logger = logging.getLogger("vllm.ratchet_cpu")

WAIT_SECONDS = 0.0005
"""Between two looks at whether a message has come. A token takes tens of milliseconds."""

Group = tuple[int, "torch.Tensor | None"]
"""An adapter's slot and its rows of the batch; None: every row."""


def group_rows(indices: torch.Tensor) -> tuple[Group, ...]:
    """Return the rows of each adapter slot. A negative slot is the base model: its rows are in no group."""
    slots = [int(slot) for slot in torch.unique(indices).tolist()]
    if len(slots) == 1:
        return () if slots[0] < 0 else ((slots[0], None),)
    return tuple((slot, torch.nonzero(indices == slot).flatten()) for slot in slots if slot >= 0)


def add_product(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, rows: torch.Tensor | None
) -> None:
    """Do `y[rows] += (x[rows] @ a.T) @ b.T * scale`, in place. x (n, in), a (rank, in), b (out, rank), y (n, out)."""
    inputs = x if rows is None else x.index_select(0, rows)
    before = y if rows is None else y.index_select(0, rows)
    shrunk = torch.mm(inputs.to(a.dtype), a.t())
    if scale != 1.0:
        shrunk *= scale
    # A single rounding, as in the base layer's product, whether the group is the whole batch or a part.
    after = torch.addmm(before.to(b.dtype), shrunk.to(b.dtype), b.t()).to(y.dtype)
    if rows is None:
        y.copy_(after)
    else:
        y.index_copy_(0, rows, after)


def matrix(stacked: torch.Tensor, slot: int) -> torch.Tensor:
    """Return one adapter's matrix from the stack (slots, 1, rows, columns)."""
    selected = stacked[slot]
    return selected.squeeze(0) if selected.dim() == 3 else selected


def fast_wrapper(base: type) -> type:
    """Return a subclass of vLLM's `PunicaWrapperCPU` that multiplies by groups of rows."""

    class GroupedPunicaWrapperCPU(base):  # type: ignore[misc]
        _token_groups: tuple[Group, ...] = ()
        _sampler_groups: tuple[Group, ...] = ()

        def update_metadata(self, *args: Any, **kwargs: Any) -> None:
            super().update_metadata(*args, **kwargs)
            self._token_groups = group_rows(self.token_lora_indices)
            self._sampler_groups = group_rows(self.sampler_indices)

        def add_lora_linear(
            self,
            y: torch.Tensor,
            x: torch.Tensor,
            lora_a_stacked: tuple[torch.Tensor, ...],
            lora_b_stacked: tuple[torch.Tensor, ...],
            scale: float,
            output_slices: tuple[int, ...],
            **kwargs: Any,
        ) -> None:
            if not self._token_groups:
                return
            y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            for slot, rows in self._token_groups:
                start = 0
                for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                    add_product(y[:, start : start + width], x, matrix(a, slot), matrix(b, slot), scale, rows)
                    start += width

        def add_lora_logits(
            self,
            y: torch.Tensor,
            x: torch.Tensor,
            lora_a_stacked: torch.Tensor,
            lora_b_stacked: torch.Tensor,
            scale: float,
            **kwargs: Any,
        ) -> None:
            y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            for slot, rows in self._sampler_groups:
                a, b = matrix(lora_a_stacked, slot), matrix(lora_b_stacked, slot)
                width = min(b.shape[0], y.shape[1])
                add_product(y[:, :width], x, a, b[:width], scale, rows)

    return GroupedPunicaWrapperCPU


def register() -> None:
    """Patch vLLM, which calls this in each of its processes. Idempotent."""
    _register_fast_lora()
    _register_sleeping()


def _register_fast_lora() -> None:
    try:
        from vllm.lora.punica_wrapper import punica_cpu  # type: ignore[import-not-found]  # only in vLLM's environment

        current = punica_cpu.PunicaWrapperCPU
        if current.__name__ != "GroupedPunicaWrapperCPU":
            punica_cpu.PunicaWrapperCPU = fast_wrapper(current)
    except (ImportError, AttributeError) as error:
        logger.warning("this vLLM has no PunicaWrapperCPU to replace (%s): LoRA stays slow on the CPU", error)


def _register_sleeping() -> None:
    """Replace the step of vLLM's waiting loop, `SpinCondition.wait`.

    To have it wait for a notification at once, and not only after a second, would lose some: ZeroMQ drops one that
    follows another too soon, which the loop makes up for.
    """
    try:
        from vllm.distributed.device_communicators import shm_broadcast  # type: ignore[import-not-found]

        if not callable(shm_broadcast.sched_yield):
            raise AttributeError("sched_yield is no function")
        shm_broadcast.sched_yield = _sleep
    except (ImportError, AttributeError) as error:
        logger.warning("this vLLM does not wait by sched_yield (%s): its processes may spin while they wait", error)


def _sleep() -> None:
    time.sleep(WAIT_SECONDS)
