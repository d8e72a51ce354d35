"""The wiring of the scheduler."""

from __future__ import annotations

import asyncio
from pathlib import Path

from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskChanged
from services.scheduler.clients import KafkaOffsets
from services.scheduler.erasure import Subjects
from services.scheduler.handlers import Handlers
from services.scheduler.http import build_app
from services.scheduler.settings import SchedulerSettings
from services.scheduler.storage import PostgresStorage
from services.scheduler.task_watcher import Tasks
from shared.identity import load_or_create_key
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.service import HttpServer, Service, run
from shared.storage.database import build_engine, migrate

NAME = "scheduler"
MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: SchedulerSettings | None = None) -> Service:
    """The service, wired but not started."""
    settings = settings or SchedulerSettings.load()
    broker = build_broker(settings, NAME)
    consumers = Consumers(broker, NAME, settings)
    publisher = Publisher(broker, NAME)
    storage = PostgresStorage(build_engine(settings, NAME))
    tasks = Tasks(settings, publisher, consumers.table(TaskChanged))
    handlers = Handlers(settings, storage, publisher, KafkaOffsets(settings), tasks)
    handlers.subscribe(consumers)
    key = load_or_create_key(settings.secrets_folder, "subjects")  # The gateway's.
    subjects = Subjects(publisher, tasks, consumers.table(RolloutChanged), key)

    async def prepare() -> None:
        await migrate(settings, NAME, MIGRATIONS)

    def missing() -> list[str]:
        return [] if tasks.looked else [f"a first look at {settings.tasks_folder}"]

    return Service(
        NAME,
        broker,
        prepare=[prepare],
        background=[tasks.watch, handlers.tick_forever],
        close=[storage.close],
        http=HttpServer(
            build_app(settings, handlers, storage, tasks, subjects, missing),
            settings.scheduler_host,
            settings.scheduler_port,
        ),
    )


def main() -> None:
    """Entry point: `python -m services.scheduler.main`."""
    asyncio.run(run([build()]))


if __name__ == "__main__":
    main()
