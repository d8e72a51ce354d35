"""The wiring of prediction_log."""

from __future__ import annotations

import asyncio

from services.prediction_log.handlers import Handlers
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.storage import DeltaLake
from shared.service import Service, run
from shared.transport import Consumers, Publisher, build_broker

NAME = "prediction_log"


def build(settings: PredictionLogSettings | None = None) -> Service:
    """The service, wired but not started."""
    settings = settings or PredictionLogSettings.load()
    broker = build_broker(settings, NAME)
    handlers = Handlers(settings, DeltaLake(settings.lake_uri, settings.kafka_incarnation), Publisher(broker, NAME))
    handlers.subscribe(Consumers(broker, NAME, settings))
    return Service(NAME, broker, background=[handlers.roll_up_forever])


def main() -> None:
    """Entry point: `python -m services.prediction_log.main`."""
    asyncio.run(run([build()]))


if __name__ == "__main__":
    main()
