"""What an operator can set of the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from shared.settings import Settings
from shared.spool import SpoolOptions, Sync


class GatewaySettings(Settings):
    gateway_host: str = Field(default="127.0.0.1", description="Address to listen on.")
    gateway_port: int = Field(default=28080, ge=0, le=65_535)
    gateway_max_body_bytes: int = Field(default=256 * 1024, ge=1_024, description="A longer body is refused: 413.")
    gateway_upstream_seconds: float = Field(default=120.0, gt=0.0, description="Longest wait for one answer.")
    gateway_connect_seconds: float = Field(default=2.0, gt=0.0, description="Longest wait for a connection.")
    gateway_connections: int = Field(default=1_000, ge=1, description="Connections to all replicas together.")
    gateway_flags_seconds: int = Field(default=1, ge=1, description="Between two looks at the flags.")
    gateway_ready_seconds: float = Field(
        default=30.0, gt=0.0, description="Ready only if a replica answered within this time."
    )
    gateway_spool_folder: Path | None = Field(
        default=None, description="Where events wait for Kafka, encrypted: a local disk. Empty: <home>/spool."
    )
    gateway_spool_sync: Sync = Field(
        default=Sync.INTERVAL,
        description="When an event counts as kept. process: it is with the operating system, so the death of any "
        "process loses nothing. interval: also on the disk within gateway_spool_sync_seconds, so a power cut loses at "
        "most the events of that time. always: on the disk before the answer leaves; each answer waits for the disk.",
    )
    gateway_spool_sync_seconds: float = Field(default=0.5, gt=0.0, le=60.0)
    gateway_spool_segment_bytes: int = Field(default=16 * 1024**2, ge=64 * 1024, description="Size of one file.")
    gateway_spool_max_bytes: int = Field(
        default=2 * 1024**3, ge=1024**2, description="The spool is full above it. An event is 1 to 3 KB."
    )
    gateway_spool_max_age_seconds: float = Field(
        default=3 * 86_400.0, gt=0.0, description="The spool is full while its oldest event waits for longer."
    )
    gateway_spool_full: Literal["refuse", "answer"] = Field(
        default="refuse",
        description="What a request gets while the spool or its disk is full. refuse: 503, and nothing is answered "
        "that is not kept. answer: its answer, marked x-ratchet-logged: false, counted and never kept.",
    )
    gateway_shipper_records: int = Field(default=2_000, ge=1, le=50_000, description="Most events shipped at once.")
    gateway_shipper_bytes: int = Field(default=8 * 1024**2, ge=64 * 1024, description="Most bytes shipped at once.")
    gateway_shipper_stop_seconds: float = Field(
        default=10.0, ge=0.0, description="On a stop, time to ship what waits; the rest is shipped by the next start."
    )
    gateway_shipper_late_seconds: float = Field(
        default=60.0, gt=0.0, description="An event that waits for longer is told by /readyz."
    )
    gateway_intake_records: int = Field(
        default=500, ge=1, description="Most answers of direct producers handled at once."
    )
    gateway_redaction_cache: int = Field(default=20_000, ge=0, description="Texts whose redaction is remembered.")

    @property
    def spool_folder(self) -> Path:
        return self.gateway_spool_folder or self.home / "spool"

    @property
    def spool_options(self) -> SpoolOptions:
        return SpoolOptions(
            sync=self.gateway_spool_sync,
            sync_seconds=self.gateway_spool_sync_seconds,
            segment_bytes=self.gateway_spool_segment_bytes,
            max_bytes=self.gateway_spool_max_bytes,
            max_age_seconds=self.gateway_spool_max_age_seconds,
        )
