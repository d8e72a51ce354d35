"""What goes wrong with a part of the stack, and what a person can do about it."""

from __future__ import annotations


class PartError(Exception):
    """A part cannot be had. `reason`: what failed; `way_out`: what the person can do, a command where there is one."""

    def __init__(self, reason: str, way_out: str) -> None:
        super().__init__(f"{reason}\n{way_out}")
        self.reason = reason
        self.way_out = way_out
