"""The wiring of the gateway."""

from __future__ import annotations

import asyncio
import time

from schemas.tasks import TaskChanged
from services.gateway.clients import UnleashFlags, VllmReplicas
from services.gateway.domain import PredictionIds
from services.gateway.handlers import Handlers
from services.gateway.http import build_app
from services.gateway.keeper import Keeper
from services.gateway.log import SpoolLog
from services.gateway.metrics import Metrics, SpoolCollector
from services.gateway.settings import GatewaySettings
from services.gateway.status import Status, concerns, read_status
from shared.identity import load_or_create_key
from shared.service import Service, run
from shared.transport import Consumers, build_broker

NAME = "gateway"
_NEARLY = 0.8


def build(settings: GatewaySettings | None = None) -> Service:
    """The service, wired but not started."""
    settings = settings or GatewaySettings.load()
    metrics = Metrics()
    broker = build_broker(settings, NAME)
    tasks = Consumers(broker, NAME, settings).table(TaskChanged)
    flags = UnleashFlags(
        settings.unleash, settings.unleash_client_token, settings.gateway_flags_seconds, settings.home / "unleash"
    )
    upstream = VllmReplicas(
        settings.vllm_urls, settings.gateway_upstream_seconds, settings.gateway_connect_seconds,
        settings.gateway_connections, metrics,
    )  # fmt: skip
    log = SpoolLog(settings.spool_folder, settings.secrets_folder, settings.spool_options, metrics)
    keeper = Keeper(settings, lambda: log.slot)
    refuses = settings.gateway_spool_full == "refuse"
    handlers = Handlers(
        tasks=tasks,
        flags=flags,
        upstream=upstream,
        log=log,
        ids=PredictionIds(load_or_create_key(settings.secrets_folder, "prediction-ids")),
        subjects_key=load_or_create_key(settings.secrets_folder, "subjects"),
        metrics=metrics,
        answer_when_full=not refuses,
    )

    def status() -> Status | None:
        return read_status(log.slot) if log.backlog is not None else None

    metrics.registry.register(
        SpoolCollector(lambda: log.backlog, lambda: log.fullness, lambda: log.sync_failures, status)
    )

    def missing() -> list[str]:
        checks = {
            "no task is known: ratchet tasks apply FILE": len(tasks) > 0,
            "no model server answers: ratchet status": upstream.answered_within(settings.gateway_ready_seconds),
            "the spool is full: requests are refused until events reach Kafka": not refuses or log.fullness < 1.0,
        }
        return [problem for problem, fine in checks.items() if not fine]

    def notes() -> list[str]:
        said = concerns(status(), settings.gateway_shipper_late_seconds, time.time())
        if (full := log.fullness) >= _NEARLY:
            said.append(f"the spool is {full:.0%} full; then, by the setting: {settings.gateway_spool_full}")
        if log.trouble:
            said.append(f"the last event was not kept: {log.trouble}; by the setting: {settings.gateway_spool_full}")
        if not flags.reachable:
            said.append("Unleash does not answer: the last known flags hold")
        return said

    return Service(
        NAME,
        broker,
        prepare=[log.start, upstream.start, flags.start],
        background=[keeper.keep_shipper, upstream.watch_forever, flags.watch_forever],
        close=[log.close, keeper.close, upstream.close, flags.close],
        http=build_app(handlers, metrics, missing, notes, settings.gateway_max_body_bytes),
        host=settings.gateway_host,
        port=settings.gateway_port,
    )


def main() -> None:
    """Entry point: `python -m services.gateway.main`."""
    asyncio.run(run([build()]))


if __name__ == "__main__":
    main()
