"""The wiring of the scheduler."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskChanged
from services.scheduler.clients import KafkaAnnouncements, KafkaFenceReader
from services.scheduler.erasure import ErasureAnnouncer
from services.scheduler.handlers import Handlers
from services.scheduler.http import build_app
from services.scheduler.settings import SchedulerSettings
from services.scheduler.storage import PostgresCycleStore
from services.scheduler.task_watcher import TaskWatcher
from shared.identity import load_or_create_key
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.service import HttpServer, Service, run_alone
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine
from shared.storage.migration import migrate

NAME = "scheduler"
MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: SchedulerSettings | None = None) -> Service:
    """Return the service, wired but not started."""
    settings = settings or SchedulerSettings.load()
    broker, engine = build_broker(settings, NAME), build_engine(settings, NAME)
    consumers = Consumers(broker, NAME, settings)
    publisher = Publisher(broker, NAME)
    cycles = PostgresCycleStore(engine)
    artifacts = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
    known_tasks, rollouts = consumers.table(TaskChanged), consumers.table(RolloutChanged)
    tasks = TaskWatcher(settings, publisher, known_tasks, artifacts)
    handlers = Handlers(settings, cycles, publisher, KafkaFenceReader(settings).fence, tasks)
    handlers.subscribe(consumers)
    key = load_or_create_key(settings.secrets_folder, "subjects")  # The key that the gateway hashes with.
    erasures = ErasureAnnouncer(publisher, rollouts, key, settings.tasks_folder)

    def not_ready() -> list[str]:
        return [] if tasks.scanned else [f"a first scan of {settings.tasks_folder}"]

    return Service(
        NAME,
        broker,
        prepare=[
            partial(migrate, settings, NAME, MIGRATIONS),
            partial(cycles.restore, KafkaAnnouncements(settings)),
        ],
        background=[tasks.scan_forever, handlers.tick_forever],
        connected=[partial(table.read_to_end, settings) for table in (known_tasks, rollouts)],
        close=[engine.dispose],
        http=HttpServer(
            build_app(settings, handlers, cycles, tasks, erasures, not_ready),
            settings.scheduler_host,
            settings.scheduler_port,
        ),
    )


def main() -> None:
    """Entry point: `python -m services.scheduler.main`."""
    run_alone(build)


if __name__ == "__main__":
    main()
