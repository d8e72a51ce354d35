"""What the gateway reports at /readyz: what it is missing to serve, and notes for an operator."""

from __future__ import annotations

import time

from services.gateway.auth.grants import AccessControl
from services.gateway.observability.shipper_status import ShipperStatus, read_shipper_status, shipper_problems
from services.gateway.recording.event_log import SpoolEventLog
from services.gateway.routing.flags import UnleashFlagReader
from services.gateway.settings import GatewaySettings
from services.gateway.tasks.served import ServedTasks
from services.gateway.upstreams.replicas import Replicas
from shared.addresses import without_credentials

_NEARLY_FULL = 0.8
_READY_SECONDS = 30.0
"""Ready only if a replica answered within this time."""
_NO_SERVER = "no model server answers"


class Readiness:
    """Computes the report on request. The only I/O is to read the shipper's small status file."""

    def __init__(
        self,
        settings: GatewaySettings,
        access: AccessControl,
        tasks: ServedTasks,
        replicas: Replicas,
        flags: UnleashFlagReader,
        log: SpoolEventLog,
    ) -> None:
        self._settings = settings
        self._access = access
        self._tasks = tasks
        self._replicas = replicas
        self._flags = flags
        self._log = log

    def shipper_status(self) -> ShipperStatus | None:
        """The shipper's last status."""
        return read_shipper_status(self._log.slot) if self._log.backlog is not None else None

    def missing(self) -> list[str]:
        """Why the gateway cannot serve; empty if it is ready."""
        refuses = self._settings.gateway_spool_full == "refuse"
        checks = {
            "no task is known: ratchet tasks apply FILE": bool(self._tasks.all()),
            self._no_server: self._replicas_answer or self._settings.fallback_model is not None,
            "the spool is full: requests are refused until events reach Kafka": not refuses or self._log.fullness < 1.0,
        }
        return [*(problem for problem, passed in checks.items() if not passed), *self._access.missing()]

    def notes(self) -> list[str]:
        """Problems that do not stop the gateway from serving."""
        settings, on_full = self._settings, f"RATCHET_GATEWAY_SPOOL_FULL={self._settings.gateway_spool_full}"
        notes = shipper_problems(self.shipper_status(), 6 * settings.gateway_shipper_stop_seconds, time.time())
        if (full := self._log.fullness) >= _NEARLY_FULL:
            notes.append(f"the spool is {full:.0%} full; once it is, {on_full} applies")
        if problem := self._log.problem:
            notes.append(f"event not recorded: {problem}; {on_full} applies")
        if settings.fallback_model is not None and not self._replicas_answer:
            fallback = without_credentials(settings.gateway_fallback_url)
            notes.append(f"{_NO_SERVER}: {fallback} stands in with {settings.fallback_model}")
        if not self._flags.reachable:
            notes.append("Unleash does not answer: the last known flags apply")
        return [*notes, *self._access.notes()]

    @property
    def _no_server(self) -> str:
        if self._replicas.refuses_key:
            return "the model servers refuse the gateway's key: RATCHET_VLLM_KEY"
        return f"{_NO_SERVER}: ratchet status"

    @property
    def _replicas_answer(self) -> bool:
        return self._replicas.answered_within(_READY_SECONDS)
