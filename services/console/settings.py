"""The settings of the console."""

from __future__ import annotations

from pydantic import Field

from shared.addresses import host_name
from shared.settings import Settings


class ConsoleSettings(Settings):
    console_host: str = Field(default="127.0.0.1", description="Address to listen on.")
    console_allowed_hosts: str = Field(
        default="",
        description="Names by which browsers reach the console, comma-separated, such as that of a proxy before it. "
        "Requests for another name are refused: 400. RATCHET_CONSOLE_HOST, localhost and every IP address are "
        "always allowed.",
    )
    console_port: int = Field(default=28090, ge=1, le=65_535, description="Port to listen on.")

    @property
    def allowed_names(self) -> frozenset[str]:
        """The names for which the console answers, as `host_name` returns them. An origin is read as its host."""
        hosts = ("localhost", self.console_host, *self.console_allowed_hosts.split(","))
        return frozenset(host_name(host.strip().rpartition("://")[2]) for host in hosts) - {""}
