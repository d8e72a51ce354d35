"""Errors named by what the caller must do about them, and how a validation error reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RatchetError(Exception):
    """A failure with its way out: `str(error)` is what a person reads, `way_out` what they do next."""

    def __init__(self, reason: str, way_out: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.way_out = way_out


class InvalidMessage(RatchetError):
    """This message can never succeed: it is dead-lettered and its partition moves on."""


class DependencyUnavailable(RatchetError):
    """A dependency is away and may come back: the message is redelivered until it does."""


class Paused(DependencyUnavailable):
    """A service waits on purpose: the message is redelivered. Whoever pauses has logged it, once."""


class StepImpossible(RatchetError):
    """A step of the cycle cannot finish with the data it was given: it is announced in `steps.failed`.

    `report`: the address of a folder that says more, if there is one.
    """

    def __init__(self, reason: str, way_out: str = "", report: str | None = None) -> None:
        super().__init__(reason, way_out)
        self.report = report


class StepSkipped(StepImpossible):
    """A step of the cycle has too little new to work on: nothing is wrong, and the cycle ends."""


class ConfigurationError(RatchetError):
    """An operator's setting or file is wrong; nothing was started."""


class MustStop(RatchetError):
    """Continuing would lose or duplicate data: the process stops and a person decides. Never retried."""


def unusable_file(error: OSError) -> ConfigurationError:
    """The error of a file or folder that cannot be read or written. Raises the given one if it is not about a file."""
    if error.filename is None:  # A connection's, or a pipe's whose reader has left.
        raise error
    way_out = "This user must be able to use it. All local state is in RATCHET_HOME (default: .ratchet here)."
    if isinstance(error, FileNotFoundError):
        way_out = "Look for a mistake in its path. A program must be installed; those of the stack: ratchet install"
    return ConfigurationError(f"{error.filename}: {error.strerror}", way_out)


def describe_validation_error(error: Any, limit: int = 5) -> str:
    """Return the first problems of pydantic's or FastAPI's error as `field: problem; …`, without the refused values."""
    problems = [(field_path(detail), detail["msg"]) for detail in error.errors()[:limit]]
    return "; ".join(f"{field}: {problem}" if field else str(problem) for field, problem in problems)


def field_path(detail: Mapping[str, Any]) -> str:
    """Return the dotted path of the field that one problem of a validation error is about; empty: the whole value."""
    return ".".join(str(part) for part in detail["loc"] if part != "body")
