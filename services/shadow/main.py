"""The wiring of shadow."""

from __future__ import annotations

import asyncio

from services.shadow.clients import StoredTrainingIndexes, UnleashSampling, VllmEngine
from services.shadow.handlers import Handlers
from services.shadow.settings import ShadowSettings
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.model.inference import InferenceClient
from shared.service import Service, run
from shared.storage.artifacts import ArtifactStore

NAME = "shadow"


def build(settings: ShadowSettings | None = None) -> Service:
    """Build the service without starting it."""
    settings = settings or ShadowSettings.load()
    broker = build_broker(settings, NAME)
    sampling = UnleashSampling(
        settings.unleash,
        settings.unleash_client_token,
        settings.shadow_poll_seconds,
        settings.shadow_unleash_environment,
        settings.home / "unleash" / NAME,
    )
    artifacts = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
    inference = InferenceClient(settings.vllm_urls, settings.shadow_timeout_seconds, settings.server_key())
    engine = VllmEngine(inference, artifacts, settings.shadow_concurrency)
    handlers = Handlers(settings, sampling, StoredTrainingIndexes(artifacts), engine, Publisher(broker, NAME))
    handlers.subscribe(Consumers(broker, NAME, settings))
    return Service(NAME, broker, prepare=[sampling.start], close=[sampling.close, inference.close])


def main() -> None:
    asyncio.run(run([build()]))


if __name__ == "__main__":
    main()
