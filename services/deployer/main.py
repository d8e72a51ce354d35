"""The wiring of the deployer."""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.deployer.clients import UnleashAdmin, VllmAdapterServer
from services.deployer.handlers import Handlers
from services.deployer.settings import DeployerSettings
from services.deployer.storage.ledger import PostgresLedger
from services.deployer.storage.rollouts import PostgresRollouts
from services.deployer.transitions import RolloutTransitions
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.model.inference import InferenceClient
from shared.service import Service, run
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine, migrate

NAME = "deployer"
MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: DeployerSettings | None = None) -> Service:
    """Build the service without starting it."""
    settings = settings or DeployerSettings.load()
    broker = build_broker(settings, NAME)
    engine = build_engine(settings, NAME)
    rollouts, ledger = PostgresRollouts(engine), PostgresLedger(engine)
    admin = UnleashAdmin(
        settings.unleash,
        settings.unleash_admin_token,
        settings.deployer_unleash_project,
        settings.deployer_unleash_environment,
    )
    inference = InferenceClient(settings.vllm_urls, key=settings.server_key())
    artifacts = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
    transitions = RolloutTransitions(
        rollouts,
        ledger,
        admin,
        VllmAdapterServer(inference, artifacts),
        Publisher(broker, NAME),
        settings.deployer_open_tickets,
    )
    handlers = Handlers(settings, rollouts, ledger, transitions)
    handlers.subscribe(Consumers(broker, NAME, settings))

    async def prepare() -> None:
        await migrate(settings, NAME, MIGRATIONS)

    return Service(
        NAME,
        broker,
        prepare=[prepare],
        background=[handlers.tick_forever, handlers.expire_forever],
        close=[admin.close, inference.close, engine.dispose],
    )


def main() -> None:
    asyncio.run(run([build()]))


if __name__ == "__main__":
    main()
