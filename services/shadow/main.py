"""The wiring of shadow."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from services.shadow.backlog import CatchUp
from services.shadow.clients import StoredTrainingIndexes, UnleashSampling, VllmEngine
from services.shadow.handlers import Handlers
from services.shadow.load import VllmLoad
from services.shadow.replays import Replays
from services.shadow.settings import ShadowSettings
from services.shadow.storage import PostgresDecisions
from services.shadow.tables import INCARNATION, OFFSETS
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.model.inference import InferenceClient
from shared.service import Service, run_alone
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine
from shared.storage.erasures import subscribe_erasures
from shared.storage.migration import migrate
from shared.storage.offsets import PostgresOffsets

NAME = "shadow"
MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: ShadowSettings | None = None) -> Service:
    """Build the service without starting it."""
    settings = settings or ShadowSettings.load()
    broker = build_broker(settings, NAME)
    sampling = UnleashSampling(
        settings.unleash,
        settings.unleash_client_token,
        settings.unleash_environment,
        settings.home / "unleash" / NAME,
    )
    artifacts = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
    inference = InferenceClient(settings.vllm_urls, settings.shadow_timeout_seconds, settings.server_key())
    database = build_engine(settings, NAME)
    decisions = PostgresDecisions(database, settings.shadow_concurrency)
    replays = Replays(
        VllmEngine(inference, artifacts),
        VllmLoad(inference).is_busy,
        Publisher(broker, NAME),
        decisions,
        settings.shadow_concurrency,
    )
    handlers = Handlers(settings, sampling, StoredTrainingIndexes(artifacts).for_rollout, decisions, replays)
    consumers, offsets = Consumers(broker, NAME, settings), PostgresOffsets(database, OFFSETS, INCARNATION)
    handlers.subscribe(consumers)
    subscribe_erasures(consumers, settings, offsets, decisions.forget)

    catch_up = CatchUp(settings, decisions, handlers)
    return Service(
        NAME,
        broker,
        prepare=[
            partial(migrate, settings, NAME, MIGRATIONS),
            partial(offsets.adopt, settings.kafka_incarnation),
            sampling.start,
        ],
        connected=[
            partial(handlers.rollouts.read_to_end, settings),
            partial(handlers.tasks.read_to_end, settings),
            catch_up.run_forever,
        ],
        close=[sampling.close, inference.close, database.dispose],
    )


def main() -> None:
    run_alone(build)


if __name__ == "__main__":
    main()
