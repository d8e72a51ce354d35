"""The wiring of failure_miner."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from services.failure_miner.handlers import CORRECTIONS, NAME, Handlers
from services.failure_miner.storage import PostgresSuspectStore
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.model.embedding import SentenceEmbedder
from shared.service import Service, run_alone
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from shared.storage.predictions import LakePredictions

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: Settings | None = None) -> Service:
    """Return the service, wired but not started."""
    settings = settings or Settings.load()
    broker, engine = build_broker(settings, NAME), build_engine(settings, NAME)
    suspects = PostgresSuspectStore(engine, CORRECTIONS)
    embedder = SentenceEmbedder(settings.embedder_folder)
    predictions = LakePredictions(settings.lake_uri)
    artifacts = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
    handlers = Handlers(settings, suspects, embedder, predictions, artifacts, Publisher(broker, NAME))
    handlers.subscribe(Consumers(broker, NAME, settings))
    prepare = [partial(migrate, settings, NAME, MIGRATIONS), partial(suspects.adopt, settings.kafka_incarnation)]
    return Service(
        NAME, broker, prepare=prepare, background=[handlers.expire_forever], connected=[handlers.read_tasks],
        close=[engine.dispose],
    )  # fmt: skip


def main() -> None:
    """Entry point: `python -m services.failure_miner.main`."""
    run_alone(build)


if __name__ == "__main__":
    main()
