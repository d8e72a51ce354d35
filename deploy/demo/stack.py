"""The stack that a loop runs on: brought up if it is not running."""

from __future__ import annotations

from collections.abc import Callable

from deploy.demo.settings import LoopSettings
from deploy.devstack import stack

Say = Callable[[str], None]


def bring_up(say: Say) -> LoopSettings:
    """Start what is not running and return where everything is.

    Raises StackError naming what did not start, and the ports that another home's stack has.
    """
    stages: dict[str, str] = {}

    def show_progress(part: str, stage: str, words: str) -> None:
        stages[part] = stage
        say(", ".join(f"{name} {stage}" for name, stage in stages.items() if stage not in ("ready", "external")))

    return LoopSettings.load(home=stack.up(on_progress=show_progress).home)


def take_down(say: Say) -> None:
    """Stop what runs in this home."""
    say(f"stopped: {', '.join(stack.down()) or 'nothing was running'}")
