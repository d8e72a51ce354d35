"""The stack that a turn runs on: brought up where it is not, told in a few words while it comes."""

from __future__ import annotations

from collections.abc import Callable

from deploy.demo.settings import LoopSettings
from deploy.devstack import stack
from deploy.devstack.parts.services import probe_ready
from shared.errors import RatchetError

Say = Callable[[str], None]


def bring_up(say: Say) -> LoopSettings:
    """Everything ready, and where it is. What runs already is left alone. Raises RatchetError naming what is not."""
    settings = LoopSettings.load()
    if all(probe_ready(url) is None for url in (settings.gateway_url, settings.console_url, settings.scheduler_url)):
        return settings
    states: dict[str, str] = {}

    def tell(part: str, stage: str, words: str) -> None:
        states[part] = stage
        say(", ".join(f"{name} {state}" for name, state in states.items() if state not in ("ready", "external")))

    try:
        config = stack.up(on_progress=tell)
    except stack.StackError as error:
        reasons = "\n".join(f"{part}: {failure.reason}" for part, failure in error.failures.items())
        ways = "\n".join(dict.fromkeys(failure.way_out for failure in error.failures.values()))
        raise RatchetError(reasons, ways) from error
    return LoopSettings.load(home=config.home)


def take_down(say: Say) -> None:
    """Stop what runs in this home."""
    stopped = stack.down()
    say(f"stopped: {', '.join(stopped) or 'nothing was running'}")
