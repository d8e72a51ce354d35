"""Errors named by what the caller must do about them."""

from __future__ import annotations


class RatchetError(Exception):
    """A failure with its way out: `str(error)` is what a person reads, `way_out` what they do next."""

    def __init__(self, reason: str, way_out: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.way_out = way_out


class InvalidMessage(RatchetError):
    """This message can never succeed: it goes to the dead-letter topic and the partition moves on."""


class DependencyUnavailable(RatchetError):
    """Something this needs is away and may come back: the message is redelivered until it does."""


class StepImpossible(RatchetError):
    """A step of the cycle cannot finish with the data it was given: it is announced in `steps.failed`."""


class ConfigurationError(RatchetError):
    """An operator's setting or file is wrong; nothing was started."""


class MustStop(RatchetError):
    """Going on would lose or double data; a person must decide. Never retried, never buried: the process stops."""
