"""What the processes of one training must decide alike: each waits for all others in the next step."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

Value = TypeVar("Value")


def agreed(value: Value) -> Value:
    """Return the first process's value, in each of them."""
    if not distributed.is_initialized():
        return value
    said = [value]
    distributed.broadcast_object_list(said)
    return said[0]


def is_first() -> bool:
    """Return True in the process that writes files: the only one, or the first."""
    return not distributed.is_initialized() or distributed.get_rank() == 0
