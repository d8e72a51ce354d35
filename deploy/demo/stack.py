"""The stack that a loop runs on: brought up if it is not running."""

from __future__ import annotations

from collections.abc import Callable

from deploy.demo.settings import LoopSettings
from deploy.devstack import stack
from deploy.devstack.config import StackConfig
from deploy.devstack.parts.services import ALL_SERVICES, probe_readiness
from deploy.devstack.supervision import records

Say = Callable[[str], None]


def bring_up(say: Say) -> LoopSettings:
    """Start what is not running and return where everything is.

    Raises StackError naming what did not start, and the ports that another home's stack has.
    """
    settings = LoopSettings.load()
    urls = (settings.gateway_url, settings.console_url, settings.scheduler_url)
    if _services_run_here() and all(probe_readiness(url) is None for url in urls):
        return settings
    stages: dict[str, str] = {}

    def show_progress(part: str, stage: str, words: str) -> None:
        stages[part] = stage
        say(", ".join(f"{name} {stage}" for name, stage in stages.items() if stage not in ("ready", "external")))

    return LoopSettings.load(home=stack.up(on_progress=show_progress).home)


def _services_run_here() -> bool:
    """Return True if this home started the services: its task file and its answers would reach another home's, too."""
    running = {record.part for record in records.read_all(StackConfig.load()).values() if record.running}
    return ALL_SERVICES in running or running >= {"gateway", "console", "scheduler"}


def take_down(say: Say) -> None:
    """Stop what runs in this home."""
    say(f"stopped: {', '.join(stack.down()) or 'nothing was running'}")
