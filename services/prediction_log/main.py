"""Wires prediction_log."""

from __future__ import annotations

import asyncio
import gc
from functools import partial

from services.prediction_log.handlers import Handlers
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.storage import DeltaLake
from shared.kafka.broker import build_broker
from shared.kafka.clients import topic_ids
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.service import Service, run, told_errors

NAME = "prediction_log"


def build(settings: PredictionLogSettings | None = None) -> Service:
    """Build the service without starting it."""
    settings = settings or PredictionLogSettings.load()
    broker = build_broker(settings, NAME)
    lake = DeltaLake(settings.lake_uri, settings.kafka_incarnation)
    handlers = Handlers(settings, lake, Publisher(broker, NAME), partial(topic_ids, settings))
    handlers.subscribe(Consumers(broker, NAME, settings))
    return Service(
        NAME, broker, connected=[handlers.read_tasks],
        background=[handlers.roll_up_forever, handlers.maintain_forever],
    )  # fmt: skip


def main() -> None:
    """Run `python -m services.prediction_log.main`."""
    with told_errors():
        service = build()
        # A batch is 100,000 objects that live until its commit: the collector would visit them hundreds of times.
        gc.freeze()
        gc.set_threshold(200_000, 20, 20)
        asyncio.run(run([service]))


if __name__ == "__main__":
    main()
