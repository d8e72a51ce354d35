"""Services in one process: `python -m deploy.runner` all ten, `python -m deploy.runner gateway shadow` those two."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Coroutine

from schemas.catalog import SERVICES
from shared.errors import ConfigurationError, DependencyUnavailable, MustStop, RatchetError
from shared.kafka.topics import create_topics, find_drift
from shared.service import Service, run
from shared.settings import Settings

_TOPICS_SECONDS = 10.0
logger = logging.getLogger(__name__)


def build_services(names: list[str]) -> list[Service]:
    """Build the named services, all if none is named. Raises ConfigurationError for an unknown name."""
    unknown = set(names) - set(SERVICES)
    if unknown:
        raise ConfigurationError(f"no such service: {sorted(unknown)}", f"One of: {', '.join(SERVICES)}")
    return [importlib.import_module(f"services.{name}.main").build() for name in names or SERVICES]


def prepare_topics(settings: Settings) -> None:
    """Create missing topics, and tell where others are not as the catalog says: an operator may have had a reason."""
    create_topics(settings)
    try:
        for drift in find_drift(settings):
            logger.warning("%s. See: ratchet topics list", drift)
    except DependencyUnavailable as error:  # A user who may read and write, but not look at settings, can go on.
        logger.warning("the topics could not be compared with the catalog: %s", error)


def look_after_topics(services: list[Service], settings: Settings) -> None:
    """Before the services start; where each of them serves without the broker, as soon as one answers."""
    if not all(one.serves_before_broker or one.broker is None for one in services):
        prepare_topics(settings)
        return

    def try_until_done() -> None:
        while True:
            try:
                return prepare_topics(settings)
            except RatchetError as error:
                logger.warning("topics are looked after later: %s", error)
                time.sleep(_TOPICS_SECONDS)

    threading.Thread(target=try_until_done, name="topics", daemon=True).start()


def _run_in_loop(work: Coroutine[None, None, None]) -> None:
    """With the gateway's extra, on its faster event loop."""
    if importlib.util.find_spec("uvloop"):
        importlib.import_module("uvloop").run(work)
    else:
        asyncio.run(work)


def main() -> None:
    """Entry point."""
    # Torch and BLAS would each take all cores, for embeddings of one sentence: leave them to the jobs and to vLLM.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    for chatty in ("kafka", "alembic.runtime.plugins"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        services = build_services(sys.argv[1:])
        look_after_topics(services, Settings.load())
        _run_in_loop(run(services))
    except (ConfigurationError, MustStop) as error:
        sys.exit(f"{error.reason}\n{error.way_out}")


if __name__ == "__main__":
    main()
