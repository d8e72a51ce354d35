"""The interface of a part of the stack: something that is installed, started, probed, and reached at an address.

A part decides *what* to run; `supervision/supervisor.py` runs and restarts it; `stack.py` orders the parts.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.devstack.config import StackConfig

Say = Callable[[str], None]
"""Callback for progress: a few words about what is being done now."""


@dataclass(frozen=True)
class Launch:
    """How to start a process. `env` is added to the caller's environment; secrets go there, never into `argv`."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "."
    user: str | None = None
    stop_signal: int = signal.SIGTERM
    grace_seconds: float = 15.0


class StackPart(ABC):
    """One part of the stack. Most parts install nothing, need no other, leave nothing to finish and have no caveat."""

    name: str
    ports: tuple[str, ...]
    """Names in `StackConfig.ports` that it listens on."""
    start_timeout_seconds: float = 180.0
    """How long a cold start may take before it counts as failed."""

    def needs(self, config: StackConfig) -> tuple[str, ...]:
        """The names of the parts that must be healthy before this one starts."""
        return ()

    def install(self, config: StackConfig, say: Say) -> None:  # noqa: B027 - nothing: most are in the extra `local`
        """Install what the part needs beside this environment. Idempotent. Raises PartError."""

    @abstractmethod
    def launch(self, config: StackConfig) -> Launch:
        """Write the part's configuration and return how to start it. Called while the parts it needs are running."""

    @abstractmethod
    def probe(self, config: StackConfig) -> str | None:
        """Send the part a real request. Returns None if it was answered, else what is wrong."""

    def finish(self, config: StackConfig, say: Say) -> None:  # noqa: B027 - nothing, for most parts
        """Create what must exist before others use the part. Called after the first healthy probe."""

    @abstractmethod
    def address(self, config: StackConfig) -> str:
        """The address to show to people, without secrets."""

    @abstractmethod
    def environment(self, config: StackConfig) -> dict[str, str]:
        """The part's lines of `stack.env`: how other processes reach it."""

    def note(self, config: StackConfig) -> str:
        """A caveat for the person who starts the part; empty if there is none."""
        return ""


def tail(path: Path, lines: int = 15, max_bytes: int = 20_000) -> str:
    """Return the last lines of a log."""
    if not path.exists():
        return "(no log yet)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - max_bytes))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
