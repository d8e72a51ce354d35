"""Where the services are, and how patient the demonstration is with a slow machine."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class LoopSettings(Settings):
    """What `ratchet loop` needs to know beyond the stack."""

    gateway_port: int = 28080
    console_port: int = 28090
    scheduler_port: int = 28091
    loop_patience: float = Field(default=1.0, gt=0.0, description="Every time limit of the loop is multiplied by it.")

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def console_url(self) -> str:
        return f"http://127.0.0.1:{self.console_port}"

    @property
    def scheduler_url(self) -> str:
        return f"http://127.0.0.1:{self.scheduler_port}"
