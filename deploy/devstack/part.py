"""What a part of the stack is: something that is installed, started, probed, and found by its address.

A part decides *what* to run; `supervisor.py` keeps it running; `stack.py` orders the parts.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from deploy.devstack.config import StackConfig

Say = Callable[[str], None]
"""How a part tells what it is doing, a few words at a time."""


@dataclass(frozen=True)
class Launch:
    """A process to keep alive. `env` is added to ours; secrets go there, never into `argv`."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "."
    user: str | None = None
    stop_signal: int = signal.SIGTERM
    grace_seconds: float = 15.0


class Part(Protocol):
    """One part of the stack."""

    name: str
    needs: tuple[str, ...]
    ports: tuple[str, ...]
    """Names in `StackConfig.ports` that it listens on."""
    start_seconds: float
    """How long a cold start may take before it is called a failure."""

    def installed(self, config: StackConfig) -> bool: ...

    def install(self, config: StackConfig, say: Say) -> None:
        """Bring everything the part needs onto this machine. Idempotent. Raises PartError."""
        ...

    def launch(self, config: StackConfig) -> Launch:
        """Write the part's configuration and say how to start it. Called while its needs are running."""
        ...

    def probe(self, config: StackConfig) -> str | None:
        """Ask the part a real question. None: it answered; else what was wrong."""
        ...

    def finish(self, config: StackConfig, say: Say) -> None:
        """After the first healthy probe: what must exist before others use the part."""
        ...

    def address(self, config: StackConfig) -> str:
        """For people: no secrets in it."""
        ...

    def environment(self, config: StackConfig) -> dict[str, str]:
        """What `stack.env` says about the part: how others reach it."""
        ...

    def note(self, config: StackConfig) -> str:
        """A caveat that the person should know; empty for none."""
        ...


def tail(path: Path, lines: int = 15, max_bytes: int = 20_000) -> str:
    """The last lines of a log, for an error message."""
    if not path.exists():
        return "(no log yet)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - max_bytes))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
