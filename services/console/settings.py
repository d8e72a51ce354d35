"""The settings of the console."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class ConsoleSettings(Settings):
    console_host: str = "127.0.0.1"
    console_port: int = Field(default=28090, ge=1, le=65_535)
    console_max_body_bytes: int = Field(default=256 * 1024, ge=1_024)
    console_refresh_seconds: float = Field(default=2.0, gt=0.0, description="Interval of an open page's refreshes.")
