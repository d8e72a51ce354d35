"""Errors of the local stack. Each has a reason and a way out."""

from __future__ import annotations

from shared.errors import RatchetError


class PartError(RatchetError):
    """One part of the stack failed. `way_out` is a command where there is one."""


class StackError(RatchetError):
    """Some parts did not start. `failures`: part name → its error."""

    def __init__(self, failures: dict[str, PartError]) -> None:
        reasons = [f"{part}: {error.reason}" for part, error in failures.items()]
        ways_out = dict.fromkeys(error.way_out for error in failures.values())
        super().__init__("\n".join(reasons), "\n".join(ways_out))
        self.failures = failures
