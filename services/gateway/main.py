"""The wiring of the gateway: one process that answers, or the supervisor of several workers that do."""

from __future__ import annotations

import functools
import gc
import sys

import uvloop

from schemas.tasks import TaskChanged
from services.gateway.answering.answer import Answerer, AnswerSources
from services.gateway.answering.pass_through import PassThrough
from services.gateway.asgi.admission import RequestAdmission
from services.gateway.asgi.large_work import LargeWork
from services.gateway.asgi.protocol import HttpProtocol
from services.gateway.auth.grants import AccessControl
from services.gateway.auth.rate_limits import TokenBuckets
from services.gateway.domain import PredictionIds
from services.gateway.formats.media import MediaReferences
from services.gateway.handlers import Handlers
from services.gateway.http import build_app
from services.gateway.observability.metrics import Metrics, SpoolCollector
from services.gateway.observability.tracing import with_spans
from services.gateway.observability.worker_metrics import WorkerMetrics
from services.gateway.processes.file_limit import raise_file_limit
from services.gateway.processes.supervisor import exit_with_parent, supervise_shipper
from services.gateway.processes.workers import build_workers
from services.gateway.readiness import Readiness
from services.gateway.recording.event_log import SpoolEventLog
from services.gateway.recording.external import ExternalPredictions, load_identifiers
from services.gateway.recording.media_folder import MediaFolder
from services.gateway.recording.recorder import Recorder, RecordingOptions
from services.gateway.routing.calibration import CalibrationCache
from services.gateway.routing.flags import UnleashFlagReader
from services.gateway.routing.passed_models import PassedModels
from services.gateway.settings import GatewaySettings
from services.gateway.tasks.served import ServedTasks
from services.gateway.tasks.snapshot import TaskSnapshot
from services.gateway.telemetry.ingest import TelemetryIngest
from services.gateway.telemetry.otlp import build_router
from services.gateway.upstreams.external import ExternalApi
from services.gateway.upstreams.outside import OutsideApi
from services.gateway.upstreams.replicas import Replicas
from services.gateway.upstreams.upstream import ServerKey
from shared.http import with_cors
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.service import HttpServer, Service, run, told_errors
from shared.storage.artifacts import ArtifactStore

NAME = "gateway"
_HTTP = {
    "http": HttpProtocol, "ws": "none", "proxy_headers": False, "server_header": False, "timeout_keep_alive": 75,
}  # fmt: skip
"""uvicorn's options. Idle connections stay open for longer than clients keep theirs: if the server closed first, a
request could arrive on a closing connection."""


def build(settings: GatewaySettings | None = None) -> Service:
    """The gateway, wired but not started: one process that answers, or the supervisor of several workers."""
    settings = settings or GatewaySettings.load()
    return build_worker(settings) if settings.gateway_workers == 1 else build_workers(settings, NAME)


def build_worker(settings: GatewaySettings, number: int = 0, parent: int | None = None) -> Service:
    """A process that answers. One of several workers has a `number`, and a `parent`: its supervisor's process id."""
    folder, several_workers = settings.home / "gateway", settings.gateway_workers > 1
    metrics, broker = Metrics(), build_broker(settings, NAME)
    worker_metrics = WorkerMetrics(metrics.registry, folder / "metrics", number)
    table = Consumers(broker, NAME, settings).table(TaskChanged)
    tasks, snapshot = ServedTasks(table, metrics), TaskSnapshot(table, settings.tasks_file)
    buckets = TokenBuckets(settings.limits_folder if several_workers else None)
    access = AccessControl(
        settings.keys_file, settings.had_keys_file, settings.keys_required, buckets, origins=settings.cors_origins
    )
    flags = UnleashFlagReader(settings.unleash, settings.unleash_client_token, settings.unleash_environment, folder)
    replicas, external = _replicas(settings, metrics), _external_api(settings)
    sources = AnswerSources(replicas, external, settings.fallback_model, settings.gateway_forward_identity)
    media = MediaFolder(settings.media_folder, settings.secrets_folder, settings.gateway_spool_max_bytes)
    log = SpoolEventLog(settings.spool_folder, settings.secrets_folder, settings.spool_options, metrics, media)
    shipper = supervise_shipper(settings, lambda: log.slot)
    calibrations = CalibrationCache(ArtifactStore(settings.artifacts_uri, settings.home / "cache"))
    identifiers = load_identifiers(settings.secrets_folder)
    recorder = Recorder(
        log,
        metrics,
        MediaReferences(identifiers.subjects_key),
        calibrations,
        RecordingOptions(settings.gateway_spool_full == "answer", settings.gateway_event_bytes),
    )
    passed = PassedModels(settings.pass_models)
    pass_through = _pass_through(settings, passed, tasks, identifiers.predictions, log, metrics)
    large_work = LargeWork()
    answerer = Answerer(tasks, flags, sources, recorder, identifiers, large_work, pass_through)
    readiness = Readiness(settings, access, tasks, replicas, flags, log)
    metrics.registry.register(
        SpoolCollector(lambda: log.backlog, lambda: log.fullness, lambda: log.sync_failures, readiness.shipper_status)
    )
    elsewhere = ExternalPredictions(identifiers, settings.gateway_event_bytes)
    ingest = TelemetryIngest(tasks, log, elsewhere, metrics, settings.traces_tasks, large_work)
    admission = RequestAdmission(access, settings.body_limits)
    handlers = Handlers(tasks, log, elsewhere, access, large_work, settings.gateway_public_metrics, passed)
    app = build_app(
        answerer, handlers, metrics, readiness.missing, readiness.notes,
        admission, [build_router(ingest, admission)],
    )  # fmt: skip
    background = [
        shipper.run_forever, replicas.watch_forever, flags.watch_forever, access.watch_forever, snapshot.sync_forever,
        calibrations.watch_forever,
        lambda: exit_with_parent(parent, "the supervisor of this worker is gone"),
    ]  # fmt: skip
    if several_workers:
        metrics.exported = worker_metrics
        background.append(worker_metrics.write_forever)
    return Service(
        NAME,
        broker,
        prepare=[raise_file_limit, log.start, media.start, snapshot.load, access.start, flags.start],
        background=background,
        connected=[functools.partial(table.read_to_end, settings)],
        close=[
            media.close, log.close, shipper.close, flags.close,
            *(api.close for api in (replicas, external, pass_through) if api is not None),
        ],
        http=HttpServer(
            with_cors(with_spans(app, settings, NAME), settings.cors_origins),
            settings.gateway_host, settings.gateway_port, several_workers, _HTTP,
        ),
        serves_before_broker=True,
    )  # fmt: skip


def _replicas(settings: GatewaySettings, metrics: Metrics) -> Replicas:
    last_resort = settings.fallback_model is None
    key = ServerKey(settings.server_key())
    return Replicas(settings.vllm_urls, settings.upstream_limits, metrics, key=key, last_resort=last_resort)


def _external_api(settings: GatewaySettings) -> ExternalApi | None:
    if settings.fallback_model is None:
        return None
    return ExternalApi(settings.gateway_fallback_url, settings.fallback_key(), settings.upstream_limits)


def _pass_through(
    settings: GatewaySettings,
    models: PassedModels,
    tasks: ServedTasks,
    ids: PredictionIds,
    log: SpoolEventLog,
    metrics: Metrics,
) -> PassThrough | None:
    if not settings.pass_models:
        return None
    key = ServerKey(settings.pass_key(), "the API for models that are no task", "RATCHET_GATEWAY_PASS_KEY")
    api = OutsideApi(settings.gateway_pass_url, key, settings.upstream_limits)
    return PassThrough(api, models, tasks, ids, log, metrics)


def serve(service: Service) -> None:
    """Run the service as this process, until SIGTERM or SIGINT."""
    # A request creates hundreds of objects and no cycle; the collector would keep scanning long-lived objects.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    sys.setswitchinterval(0.001)  # The event loop waits so long for the GIL while a thread works on a large body.
    uvloop.run(run([service]))


def main() -> None:
    """Entry point: `python -m services.gateway.main`."""
    with told_errors():
        serve(build())


if __name__ == "__main__":
    main()
