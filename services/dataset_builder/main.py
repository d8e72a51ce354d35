"""The wiring of dataset_builder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from services.dataset_builder.feedback import UserFeedback
from services.dataset_builder.handlers import Handlers
from services.dataset_builder.job import ENVIRONMENT, NAME, POSTGRES_VARIABLE
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage.corrections import PostgresCorrectionStore
from services.dataset_builder.storage.traffic import PostgresTrafficStore
from shared.jobs import Jobs
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.service import Service, run_alone
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from shared.storage.predictions import LakePredictions

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: DatasetBuilderSettings | None = None) -> Service:
    """Return the service, wired but not started."""
    settings = settings or DatasetBuilderSettings.load()
    broker, engine = build_broker(settings, NAME), build_engine(settings, NAME)
    corrections = PostgresCorrectionStore(engine)
    environment = {**ENVIRONMENT, POSTGRES_VARIABLE: settings.postgres}
    jobs = Jobs(settings.jobs_folder, "services.dataset_builder.job_process", environment)
    handlers = Handlers(settings, corrections, PostgresTrafficStore(engine), jobs, Publisher(broker, NAME))
    consumers = Consumers(broker, NAME, settings)
    handlers.subscribe(consumers)
    UserFeedback(settings, corrections, LakePredictions(settings.lake_uri)).subscribe(consumers)
    prepare = [partial(migrate, settings, NAME, MIGRATIONS), partial(corrections.adopt, settings.kafka_incarnation)]
    background = [handlers.follow_jobs, handlers.expire_forever]
    return Service(
        NAME, broker, prepare=prepare, background=background, connected=[handlers.read_tasks], close=[engine.dispose]
    )


def main() -> None:
    """Entry point: `python -m services.dataset_builder.main`."""
    run_alone(build)


if __name__ == "__main__":
    main()
