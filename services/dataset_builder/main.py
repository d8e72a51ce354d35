"""The wiring of dataset_builder."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from services.dataset_builder.handlers import NAME, Handlers
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage import PostgresStore
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.service import Service, run
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine, migrate

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: DatasetBuilderSettings | None = None) -> Service:
    """The service, wired but not started."""
    settings = settings or DatasetBuilderSettings.load()
    broker = build_broker(settings, NAME)
    store = PostgresStore(build_engine(settings, NAME))
    artifacts = ArtifactStore(settings.artifacts_uri, cache=settings.home / "cache")
    handlers = Handlers(settings, store, artifacts, Publisher(broker, NAME))
    handlers.subscribe(Consumers(broker, NAME, settings))
    prepare = [partial(migrate, settings, NAME, MIGRATIONS), partial(store.adopt, settings.kafka_incarnation)]
    background, close = [handlers.expire_forever], [store.close]
    return Service(NAME, broker, prepare=prepare, background=background, close=close)


def main() -> None:
    """Entry point: `python -m services.dataset_builder.main`."""
    asyncio.run(run([build()]))


if __name__ == "__main__":
    main()
