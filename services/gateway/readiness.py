"""What a gateway tells of itself at /readyz: what is missing to serve, and what is worth knowing."""

from __future__ import annotations

import time

from services.gateway.auth.grants import AccessControl
from services.gateway.observability.shipper_status import ShipperStatus, read_shipper_status, shipper_problems
from services.gateway.recording.event_log import SpoolEventLog
from services.gateway.routing.flags import UnleashFlagReader
from services.gateway.settings import GatewaySettings
from services.gateway.tasks.served import ServedTasks
from services.gateway.upstreams.replicas import Replicas

_NEARLY = 0.8
_NO_SERVER = "no model server answers"


class Readiness:
    """Asked when somebody looks; nothing of it takes I/O but the shipper's small file."""

    def __init__(
        self,
        settings: GatewaySettings,
        access: AccessControl,
        tasks: ServedTasks,
        upstream: Replicas,
        flags: UnleashFlagReader,
        log: SpoolEventLog,
    ) -> None:
        self._settings = settings
        self._access = access
        self._tasks = tasks
        self._upstream = upstream
        self._flags = flags
        self._log = log

    def shipper(self) -> ShipperStatus | None:
        """What the shipper told last."""
        return read_shipper_status(self._log.slot) if self._log.backlog is not None else None

    def missing(self) -> list[str]:
        """Without these it cannot serve."""
        refuses = self._settings.gateway_spool_full == "refuse"
        checks = {
            "no task is known: ratchet tasks apply FILE": bool(self._tasks.all()),
            f"{_NO_SERVER}: ratchet status": self._answers or self._settings.fallback_model is not None,
            "the spool is full: requests are refused until events reach Kafka": not refuses or self._log.fullness < 1.0,
        }
        return [*(problem for problem, fine in checks.items() if not fine), *self._access.missing()]

    def notes(self) -> list[str]:
        """With these it serves all the same."""
        settings = self._settings
        said = shipper_problems(self.shipper(), settings.gateway_shipper_late_seconds, time.time())
        if (full := self._log.fullness) >= _NEARLY:
            said.append(f"the spool is {full:.0%} full; then, by the setting: {settings.gateway_spool_full}")
        if self._log.trouble:
            trouble = self._log.trouble
            said.append(f"the last event was not kept: {trouble}; by the setting: {settings.gateway_spool_full}")
        if settings.fallback_model is not None and not self._answers:
            said.append(f"{_NO_SERVER}: {settings.gateway_fallback_url} stands in with {settings.fallback_model}")
        if not self._flags.reachable:
            said.append("Unleash does not answer: the last known flags hold")
        return [*said, *self._access.notes()]

    @property
    def _answers(self) -> bool:
        return self._upstream.answered_within(self._settings.gateway_ready_seconds)
