"""Supervises the processes that belong to a gateway: its shipper, and its workers where it has several."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import SecretStr

from services.gateway.settings import GatewaySettings

_CODE_FOLDER = Path(__file__).parents[3]
_MAX_BACKOFF_SECONDS = 30.0
_HEALTHY_SECONDS = 60.0
_SHIPPER_EXIT_SECONDS = 8.0
"""What a shipper needs to leave its consumer group and close its connections, besides shipping what waits."""
_WORKER_EXIT_SECONDS = 8.0
"""What a worker needs to finish the answers in flight."""

logger = logging.getLogger(__name__)


class ProcessSupervisor:
    """Starts a process, restarts it when it dies, and stops it with this one.

    `exit_seconds`: the time that it has to stop. `consequence`: what its death means until then, for the log.
    """

    def __init__(
        self,
        name: str,
        arguments: Callable[[], Sequence[str]],
        settings: GatewaySettings,
        exit_seconds: float,
        consequence: str,
    ) -> None:
        self._name = name
        self._arguments = arguments
        self._settings = settings
        self._exit_seconds = exit_seconds
        self._consequence = consequence
        self._process: asyncio.subprocess.Process | None = None

    async def run_forever(self) -> None:
        """Background: run the process. The backoff between restarts grows until the process has run for a minute."""
        backoff = 0.5
        while True:
            started = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *self._arguments(), str(os.getpid()),
                env=child_environment(self._settings), stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches this process only; it stops the child last.
            )  # fmt: skip
            code = await self._process.wait()
            if time.monotonic() - started > _HEALTHY_SECONDS:
                backoff = 0.5
            logger.error("%s exited with %s, retrying in %.1f s: %s", self._name, code, backoff, self._consequence)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)

    async def close(self) -> None:
        """Terminate the process, and kill it if it does not stop in time."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(self._exit_seconds):
                await self._process.wait()
        except TimeoutError:
            logger.warning("%s did not exit within %.0f s: killed", self._name, self._exit_seconds)
            self._process.kill()
            await self._process.wait()


def supervise_shipper(settings: GatewaySettings, slot: Callable[[], Path]) -> ProcessSupervisor:
    """The supervisor of the shipper, a process of its own so that redaction does not take the request path's core.

    When it stops it ships what waits, as far as its time goes; the next start ships the rest.
    """
    exit_seconds = settings.gateway_shipper_stop_seconds + _SHIPPER_EXIT_SECONDS
    return ProcessSupervisor(
        "the shipper",
        lambda: ("services.gateway.shipper.shipper", str(slot())),
        settings,
        exit_seconds,
        "events wait in the spool",
    )


def supervise_worker(settings: GatewaySettings, number: int) -> ProcessSupervisor:
    """The supervisor of one of several workers. Its time to exit includes that of its own shipper."""
    exit_seconds = settings.gateway_shipper_stop_seconds + _SHIPPER_EXIT_SECONDS + _WORKER_EXIT_SECONDS
    return ProcessSupervisor(
        f"worker {number}",
        lambda: ("services.gateway.worker", str(number)),
        settings,
        exit_seconds,
        "the other workers answer",
    )


async def exit_with_parent(parent: int | None, message: str, before: Callable[[], None] = lambda: None) -> None:
    """Background of a supervised process: exit, as on SIGTERM, when its supervisor, the process `parent`, is gone.

    `message` is logged and `before` called first. Without a parent it returns at once.
    """
    if parent is None:
        return
    while os.getppid() == parent:
        await asyncio.sleep(0.5)
    logger.warning("%s", message)
    before()
    os.kill(os.getpid(), signal.SIGTERM)


def child_environment(settings: GatewaySettings) -> dict[str, str]:
    """The environment of a child process with exactly these settings, and one thread for every numeric library."""
    values = ((name, getattr(settings, name)) for name in type(settings).model_fields)
    variables = {
        f"RATCHET_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values
        if value is not None
    }
    path = os.pathsep.join(filter(None, (str(_CODE_FOLDER), os.environ.get("PYTHONPATH"))))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, **variables, "PYTHONPATH": path}
