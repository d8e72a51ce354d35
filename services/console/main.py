"""Wires the console."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from schemas.tasks import TaskChanged
from services.console.handlers import Handlers
from services.console.history import PostgresCycleHistory
from services.console.http import build_app
from services.console.pages.overview import mount_pages
from services.console.redaction import AnswerRedactor
from services.console.reports import mount_reports
from services.console.reviews import Reviews
from services.console.settings import ConsoleSettings
from services.console.storage import PostgresQueue
from services.console.tables import INCARNATION, OFFSETS
from shared.identity import load_or_create_key
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.privacy.redaction import Redactor
from shared.privacy.retention import drop_expired_forever
from shared.service import HttpServer, Service, run_alone
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine
from shared.storage.erasures import subscribe_erasures
from shared.storage.migration import migrate
from shared.storage.offsets import PostgresOffsets

NAME = "console"
MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: ConsoleSettings | None = None) -> Service:
    """Build the service without starting it."""
    settings = settings or ConsoleSettings.load()
    broker = build_broker(settings, NAME)
    consumers = Consumers(broker, NAME, settings)
    engine = build_engine(settings, NAME)
    queue = PostgresQueue(engine)
    history = PostgresCycleHistory(engine)
    tasks = consumers.table(TaskChanged)
    surrogates = load_or_create_key(settings.secrets_folder, "surrogates")
    reviews = Reviews(queue, Publisher(broker, NAME), tasks, AnswerRedactor(lambda: Redactor(surrogates)))
    handlers = Handlers(queue, history)
    handlers.subscribe(consumers)
    offsets = PostgresOffsets(engine, OFFSETS, INCARNATION)
    subscribe_erasures(consumers, settings, offsets, handlers.on_subject_forgotten)
    http = build_app(settings, reviews, history)
    mount_reports(http, history, ArtifactStore(settings.artifacts_uri, settings.home / "cache"))
    mount_pages(http, reviews, history, tasks)

    return Service(
        NAME,
        broker,
        prepare=[partial(migrate, settings, NAME, MIGRATIONS), partial(offsets.adopt, settings.kafka_incarnation)],
        background=[partial(drop_expired_forever, tasks, handlers.drop_before)],
        connected=[partial(tasks.read_to_end, settings)],
        close=[engine.dispose],
        http=HttpServer(http, settings.console_host, settings.console_port),
    )


def main() -> None:
    """Run `python -m services.console.main`."""
    run_alone(build)


if __name__ == "__main__":
    main()
