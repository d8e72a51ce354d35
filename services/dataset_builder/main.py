"""The wiring of dataset_builder."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from services.dataset_builder.handlers import NAME, Handlers
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage import PostgresCorrectionStore, PostgresTrafficStore
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.service import Service, run
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine, migrate

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: DatasetBuilderSettings | None = None) -> Service:
    """Return the service, wired but not started."""
    settings = settings or DatasetBuilderSettings.load()
    broker, engine = build_broker(settings, NAME), build_engine(settings, NAME)
    corrections = PostgresCorrectionStore(engine)
    artifacts = ArtifactStore(settings.artifacts_uri, cache=settings.home / "cache")
    handlers = Handlers(settings, corrections, PostgresTrafficStore(engine), artifacts, Publisher(broker, NAME))
    handlers.subscribe(Consumers(broker, NAME, settings))
    prepare = [partial(migrate, settings, NAME, MIGRATIONS), partial(corrections.adopt, settings.kafka_incarnation)]
    return Service(NAME, broker, prepare=prepare, background=[handlers.expire_forever], close=[engine.dispose])


def main() -> None:
    """Entry point: `python -m services.dataset_builder.main`."""
    asyncio.run(run([build()]))


if __name__ == "__main__":
    main()
