"""The wiring of the gateway."""

from __future__ import annotations

import asyncio

from schemas.tasks import TaskChanged
from services.gateway.clients import UnleashFlags, VllmReplicas
from services.gateway.domain import PredictionIds
from services.gateway.handlers import Handlers
from services.gateway.http import build_app
from services.gateway.log import KafkaLog, Observations
from services.gateway.metrics import Metrics
from services.gateway.settings import GatewaySettings
from shared.identity import load_or_create_key
from shared.service import Service, run
from shared.transport import Consumers, Publisher, build_broker

NAME = "gateway"


def build(settings: GatewaySettings | None = None) -> Service:
    """The service, wired but not started."""
    settings = settings or GatewaySettings.load()
    metrics = Metrics()
    broker = build_broker(settings, NAME)
    publisher = Publisher(broker, NAME)
    tasks = Consumers(broker, NAME, settings).table(TaskChanged)
    flags = UnleashFlags(
        settings.unleash, settings.unleash_client_token, settings.gateway_flags_seconds, settings.home / "unleash"
    )
    upstream = VllmReplicas(
        settings.vllm_urls, settings.gateway_upstream_seconds, settings.gateway_connect_seconds,
        settings.gateway_connections, metrics,
    )  # fmt: skip
    observations = Observations(publisher, settings.gateway_observations_kept, metrics)
    handlers = Handlers(
        tasks=tasks,
        flags=flags,
        upstream=upstream,
        log=KafkaLog(publisher, settings.gateway_log_seconds),
        observations=observations,
        ids=PredictionIds(load_or_create_key(settings.secrets_folder, "prediction-ids")),
        subjects_key=load_or_create_key(settings.secrets_folder, "subjects"),
        metrics=metrics,
    )

    def missing() -> list[str]:
        checks = {
            "no task is known: ratchet tasks apply FILE": len(tasks) > 0,
            "no model server answers: ratchet status": upstream.answered_within(settings.gateway_ready_seconds),
        }
        return [problem for problem, fine in checks.items() if not fine]

    def notes() -> list[str]:
        return [] if flags.reachable else ["Unleash does not answer: the last known flags hold"]

    return Service(
        NAME,
        broker,
        prepare=[upstream.start, flags.start],
        background=[observations.ship_forever, upstream.watch_forever, flags.watch_forever],
        close=[upstream.close, flags.close],
        http=build_app(handlers, metrics, missing, notes, settings.gateway_max_body_bytes),
        host=settings.gateway_host,
        port=settings.gateway_port,
    )


def main() -> None:
    """Entry point: `python -m services.gateway.main`."""
    asyncio.run(run([build()]))


if __name__ == "__main__":
    main()
