"""The wiring of the deployer."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from services.deployer.admission import Admission
from services.deployer.clients import UnleashAdmin, VllmAdapterServer
from services.deployer.handlers import Handlers
from services.deployer.operators.commands import OperatorCommands
from services.deployer.operators.http import build_app
from services.deployer.operators.webhook import Webhook
from services.deployer.replicas import AdapterReplicas
from services.deployer.settings import DeployerSettings
from services.deployer.storage.ledger import PostgresLedger
from services.deployer.storage.rollouts import PostgresRollouts
from services.deployer.tables import INCARNATION, OFFSETS
from services.deployer.transitions import RolloutTransitions
from services.deployer.workers import TICKS_AT_ONCE, TaskWorkers
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.model.inference import InferenceClient
from shared.service import HttpServer, Service, run_alone
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine
from shared.storage.erasures import subscribe_erasures
from shared.storage.migration import migrate
from shared.storage.offsets import PostgresOffsets

NAME = "deployer"
MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: DeployerSettings | None = None) -> Service:
    """Build the service without starting it."""
    settings = settings or DeployerSettings.load()
    broker = build_broker(settings, NAME)
    engine = build_engine(settings, NAME, connections=20 + 2 * TICKS_AT_ONCE)
    rollouts, ledger = PostgresRollouts(engine), PostgresLedger(engine, settings.kafka_incarnation)
    admin = UnleashAdmin(
        settings.unleash,
        settings.unleash_admin_token,
        settings.unleash_project,
        settings.unleash_environment,
        rollouts.confirm_lock,
    )
    inference = InferenceClient(settings.vllm_urls, key=settings.server_key())
    artifacts = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
    replicas = AdapterReplicas(inference, artifacts, rollouts, admin, settings)
    publisher = Publisher(broker, NAME)
    transitions = RolloutTransitions(
        rollouts,
        ledger,
        admin,
        VllmAdapterServer(replicas, artifacts, settings.vllm_max_lora_rank),
        publisher,
    )
    admission = Admission(rollouts, transitions, publisher)
    handlers = Handlers(settings, rollouts, ledger, transitions, admission)
    commands = OperatorCommands(
        rollouts, admin, transitions, handlers.wakes, handlers.end_outdated, handlers.wait_for_tasks
    )
    workers = TaskWorkers(settings, rollouts, admin, handlers)
    webhook = Webhook(settings, rollouts)
    consumers, offsets = Consumers(broker, NAME, settings), PostgresOffsets(engine, OFFSETS, INCARNATION)
    handlers.subscribe(consumers)
    subscribe_erasures(consumers, settings, offsets, handlers.on_forgotten)
    return Service(
        NAME,
        broker,
        prepare=[partial(migrate, settings, NAME, MIGRATIONS), partial(offsets.adopt, settings.kafka_incarnation)],
        background=[
            workers.run_forever,
            workers.watch_flags_forever,
            handlers.expire_forever,
            replicas.reconcile_forever,
            webhook.notify_forever,
        ],
        connected=[handlers.publish_again, handlers.read_tasks],
        close=[webhook.close, admin.close, inference.close, engine.dispose],
        http=HttpServer(
            build_app(settings, rollouts, ledger, transitions, commands, handlers.trouble, replicas.trouble_of),
            settings.deployer_host,
            settings.deployer_port,
        ),
    )


def main() -> None:
    run_alone(build)


if __name__ == "__main__":
    main()
