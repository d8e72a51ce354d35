"""The wiring of the gateway."""

from __future__ import annotations

import asyncio
import gc

import uvloop

from schemas.tasks import TaskChanged
from services.gateway.answering.answer import Answerer, ExternalFallback
from services.gateway.asgi.protocol import BoundedHttpProtocol
from services.gateway.auth.grants import AccessControl
from services.gateway.auth.rate_limits import TokenBuckets
from services.gateway.domain import PredictionIds
from services.gateway.handlers import Handlers
from services.gateway.http import build_app
from services.gateway.observability.metrics import Metrics, SpoolCollector
from services.gateway.observability.tracing import event_headers, with_spans
from services.gateway.observability.worker_metrics import WRITE_SECONDS, WorkerMetrics
from services.gateway.processes.supervisor import exit_with_parent, supervise_shipper
from services.gateway.processes.workers import build_workers
from services.gateway.readiness import Readiness
from services.gateway.recording.event_log import SpoolEventLog
from services.gateway.recording.recorder import Recorder
from services.gateway.routing.calibration import CalibrationCache
from services.gateway.routing.flags import UnleashFlagReader
from services.gateway.settings import GatewaySettings
from services.gateway.tasks.served import ServedTasks
from services.gateway.tasks.snapshot import TaskSnapshot
from services.gateway.telemetry.correlation import CorrelationBuffer
from services.gateway.telemetry.ingest import TelemetryIngest
from services.gateway.telemetry.otlp import OTLP_PATHS, build_router
from services.gateway.upstreams.external import ExternalApi
from services.gateway.upstreams.replicas import Replicas
from shared.http import with_cors
from shared.identity import load_or_create_key
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.privacy.encryption import load_cipher
from shared.service import HttpServer, Service, run
from shared.storage.artifacts import ArtifactStore

NAME = "gateway"
_HTTP = {
    "http": BoundedHttpProtocol, "ws": "none", "proxy_headers": False, "server_header": False, "timeout_keep_alive": 75,
}  # fmt: skip
"""Of uvicorn. Idle connections are kept for longer than clients keep theirs: who closes first may cut a request."""


def build(settings: GatewaySettings | None = None) -> Service:
    """The service, wired but not started: one that answers, or one that keeps the workers that do."""
    settings = settings or GatewaySettings.load()
    return build_worker(settings) if settings.gateway_workers == 1 else build_workers(settings, NAME)


def build_worker(settings: GatewaySettings, number: int = 0, parent: int | None = None) -> Service:
    """What answers. `number` and `parent`, a process id: of one of several workers."""
    metrics = Metrics()
    if settings.gateway_workers > 1:
        metrics.exposed = WorkerMetrics(metrics.registry, settings.home / "gateway" / "metrics", number)
    broker = build_broker(settings, NAME)
    table = Consumers(broker, NAME, settings).table(TaskChanged)
    tasks_on_disk = TaskSnapshot(table, settings.home / "gateway" / "tasks.json")
    tasks = ServedTasks(table, metrics)
    flags = UnleashFlagReader(
        settings.unleash, settings.unleash_client_token, settings.gateway_flags_seconds, settings.home / "gateway"
    )
    upstream = Replicas(
        settings.vllm_urls, settings.upstream_limits, metrics, last_resort=settings.fallback_model is None
    )
    external = _external(settings, metrics)
    calibrations = CalibrationCache(ArtifactStore(settings.artifacts_uri, settings.home / "cache"))
    log = SpoolEventLog(settings.spool_folder, settings.secrets_folder, settings.spool_options, metrics)
    keeper = supervise_shipper(settings, lambda: log.slot)
    buckets = TokenBuckets(settings.limits_folder if settings.gateway_workers > 1 else None)
    access = AccessControl(settings.keys_file, settings.gateway_require_keys, buckets)
    ids = PredictionIds(load_or_create_key(settings.secrets_folder, "prediction-ids"))
    subjects_key = load_or_create_key(settings.secrets_folder, "subjects")
    answering = Answerer(
        tasks,
        flags,
        upstream,
        Recorder(log, metrics, calibrations, answer_when_full=settings.gateway_spool_full == "answer"),
        ids,
        subjects_key,
        metrics,
        access=access,
        tracing=event_headers,
        external=ExternalFallback(external, settings.gateway_fallback_model) if external is not None else None,
    )
    handlers = Handlers(tasks, log, ids, subjects_key, access)
    readiness = Readiness(settings, access, tasks, upstream, flags, log)
    metrics.registry.register(
        SpoolCollector(lambda: log.backlog, lambda: log.fullness, lambda: log.sync_failures, readiness.shipper)
    )
    room = CorrelationBuffer(
        settings.home / "gateway" / "waiting", load_cipher(settings.secrets_folder, "spool"),
        settings.gateway_traces_wait_seconds, settings.gateway_traces_max_waiting, metrics.spans.labels("lost").inc,
    )  # fmt: skip
    traces = TelemetryIngest(
        tasks, log, ids, subjects_key, metrics, room, settings.traces_tasks, settings.gateway_traces_max_spans
    )
    longest = settings.gateway_traces_max_body_bytes
    door = build_app(
        answering, handlers, metrics, readiness.missing, readiness.notes, settings.gateway_max_body_bytes,
        [build_router(traces, access, 4 * longest)], dict.fromkeys(OTLP_PATHS, longest),
    )  # fmt: skip

    async def share_metrics() -> None:
        while isinstance(metrics.exposed, WorkerMetrics):
            metrics.exposed.write()
            await asyncio.sleep(WRITE_SECONDS)

    async def watch_parent() -> None:
        if parent is not None:
            await exit_with_parent(parent, "the gateway that kept this worker is gone")

    others = [external] if external is not None else []
    return Service(
        NAME,
        broker,
        prepare=[
            log.start, tasks_on_disk.load, access.start, flags.start,
        ],
        background=[
            keeper.keep, upstream.watch_forever, flags.watch_forever, access.watch_forever, tasks_on_disk.sync_forever,
            room.sweep_forever, calibrations.watch_forever, share_metrics, watch_parent,
        ],
        close=[log.close, keeper.close, upstream.close, *(one.close for one in others), flags.close],
        http=HttpServer(
            with_cors(with_spans(door, settings, NAME), settings.cors_origins),
            settings.gateway_host, settings.gateway_port, settings.gateway_workers > 1, _HTTP,
        ),
        serves_before_broker=True,
    )  # fmt: skip


def _external(settings: GatewaySettings, metrics: Metrics) -> ExternalApi | None:
    if settings.fallback_model is None:
        return None
    return ExternalApi(settings.gateway_fallback_url, settings.fallback_key(), settings.upstream_limits, metrics)


def serve(service: Service) -> None:
    """Run it as this process, until it is told to stop."""
    # A request leaves hundreds of objects and no cycle; the collector would look at what lives on, again and again.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    uvloop.run(run([service]))


def main() -> None:
    """Entry point: `python -m services.gateway.main`."""
    serve(build())


if __name__ == "__main__":
    main()
