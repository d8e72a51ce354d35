"""What an operator can set of the gateway."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class GatewaySettings(Settings):
    gateway_host: str = Field(default="127.0.0.1", description="Address to listen on.")
    gateway_port: int = Field(default=28080, ge=0, le=65_535)
    gateway_max_body_bytes: int = Field(default=256 * 1024, ge=1_024, description="A longer body is refused: 413.")
    gateway_upstream_seconds: float = Field(default=120.0, gt=0.0, description="Longest wait for one answer.")
    gateway_connect_seconds: float = Field(default=2.0, gt=0.0, description="Longest wait for a connection.")
    gateway_connections: int = Field(default=1_000, ge=1, description="Connections to all replicas together.")
    gateway_log_seconds: float = Field(default=5.0, gt=0.0, description="Longest wait for the event log: then 503.")
    gateway_flags_seconds: int = Field(default=1, ge=1, description="Between two looks at the flags.")
    gateway_observations_kept: int = Field(
        default=10_000, ge=1, description="Observations that wait for a slow broker; more are dropped and counted."
    )
    gateway_ready_seconds: float = Field(
        default=30.0, gt=0.0, description="Ready only if a replica answered within this time."
    )
