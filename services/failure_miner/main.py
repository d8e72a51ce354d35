"""The wiring of failure_miner."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from services.failure_miner.clients import DeltaLake
from services.failure_miner.handlers import CORRECTIONS, NAME, Handlers
from services.failure_miner.recipe import SentenceEmbedder
from services.failure_miner.settings import FailureMinerSettings
from services.failure_miner.storage import PostgresStore
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.service import Service, run
from shared.storage.database import build_engine, migrate

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: FailureMinerSettings | None = None) -> Service:
    """The service, wired but not started."""
    settings = settings or FailureMinerSettings.load()
    broker = build_broker(settings, NAME)
    store = PostgresStore(build_engine(settings, NAME), CORRECTIONS)
    embedder = SentenceEmbedder(settings.models_folder / settings.failure_miner_embedder)
    handlers = Handlers(settings, store, embedder, DeltaLake(settings.lake_uri), Publisher(broker, NAME))
    handlers.subscribe(Consumers(broker, NAME, settings))
    prepare = [partial(migrate, settings, NAME, MIGRATIONS), partial(store.adopt, settings.kafka_incarnation)]
    background, close = [handlers.expire_forever], [store.close]
    return Service(NAME, broker, prepare=prepare, background=background, close=close)


def main() -> None:
    """Entry point: `python -m services.failure_miner.main`."""
    asyncio.run(run([build()]))


if __name__ == "__main__":
    main()
