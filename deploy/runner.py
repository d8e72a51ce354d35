"""Runs services in one process: `python -m deploy.runner` all ten, `python -m deploy.runner gateway shadow` two."""

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

from deploy.variables import unknown_variables
from schemas.catalog import SERVICES
from shared.errors import ConfigurationError, DependencyUnavailable, RatchetError, unusable_file
from shared.kafka.topics import create_topics, find_drift
from shared.service import Service, run
from shared.settings import Settings

_RETRY_SECONDS = 10.0
logger = logging.getLogger(__name__)


def build_services(names: list[str]) -> list[Service]:
    """Build the named services, or all if none is named.

    Raises ConfigurationError for an unknown name, and for a home that cannot be used.
    """
    unknown = set(names) - set(SERVICES)
    if unknown:
        raise ConfigurationError(f"no such service: {sorted(unknown)}", f"One of: {', '.join(SERVICES)}")
    try:
        return [importlib.import_module(f"services.{name}.main").build() for name in names or SERVICES]
    except OSError as error:
        raise unusable_file(error) from error


def prepare_topics(settings: Settings) -> None:
    """Create missing topics and warn of those that differ from the catalog: an operator may have changed them."""
    create_topics(settings)
    try:
        for drift in find_drift(settings):
            logger.warning("%s. See: ratchet topics list", drift)
    except DependencyUnavailable as error:  # A Kafka user without the right to read settings can still run services.
        logger.warning("the topics could not be compared with the catalog: %s", error)


def ensure_topics(services: list[Service], settings: Settings) -> None:
    """Prepare the topics before the services start, or in the background if all of them serve without a broker."""
    if not all(service.serves_before_broker or service.broker is None for service in services):
        prepare_topics(settings)
        return

    def retry_until_prepared() -> None:
        while True:
            try:
                return prepare_topics(settings)
            except RatchetError as error:
                logger.warning("topics were not created: %s; retrying in %.0f s", error, _RETRY_SECONDS)
                time.sleep(_RETRY_SECONDS)

    threading.Thread(target=retry_until_prepared, name="topics", daemon=True).start()


def _run(work: Coroutine[None, None, None]) -> None:
    """Run `work` on uvloop, which is faster, if it is installed (the gateway's extra has it)."""
    if importlib.util.find_spec("uvloop"):
        importlib.import_module("uvloop").run(work)
    else:
        asyncio.run(work)


def main() -> None:
    """Run the services named on the command line until they are stopped."""
    # Torch and BLAS would each use all cores to embed one sentence: leave them to the jobs and to vLLM.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    for name in ("kafka", "alembic.runtime.plugins"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for problem in unknown_variables(os.environ):
        logger.warning(problem)
    try:
        services = build_services(sys.argv[1:])
        ensure_topics(services, Settings.load())
        _run(run(services))
    except RatchetError as error:
        sys.exit(f"{error.reason}\n{error.way_out}")


if __name__ == "__main__":
    main()
