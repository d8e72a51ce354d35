"""Keeps processes running that belong to a gateway: its shippers, and its workers where it has several."""

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
from typing import Any

from pydantic import SecretStr

from services.gateway.settings import GatewaySettings

_CODE = Path(__file__).parents[3]
_LONGEST_PAUSE = 30.0
_HEALTHY_SECONDS = 60.0
_LEAVING_SECONDS = 8.0
"""What a shipper takes to leave its consumer group and its connections, beside shipping what waits."""
_ANSWERING_SECONDS = 8.0
"""What a worker takes to finish the answers that are on their way."""

logger = logging.getLogger(__name__)


class ProcessSupervisor:
    """Starts a process, starts it again when it died, ends it with this one. `meanwhile`: what its death means."""

    def __init__(
        self,
        name: str,
        arguments: Callable[[], Sequence[str]],
        settings: GatewaySettings,
        seconds: float,
        meanwhile: str,
    ) -> None:
        self._name = name
        self._arguments = arguments
        self._settings = settings
        self._seconds = seconds
        self._meanwhile = meanwhile
        self._process: asyncio.subprocess.Process | None = None

    async def keep(self) -> None:
        """Background. A death is logged and followed by a pause, longer each time, until one lives for a minute."""
        pause = 0.5
        while True:
            started = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *self._arguments(), str(os.getpid()),
                env=environment(self._settings), stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # A Ctrl-C is ours: this one ends it, after its own last answer.
            )  # fmt: skip
            code = await self._process.wait()
            if time.monotonic() - started > _HEALTHY_SECONDS:
                pause = 0.5
            logger.error("%s ended with %s, again in %.1f s; %s", self._name, code, pause, self._meanwhile)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def close(self) -> None:
        """Let it finish, within its time, then end it."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), self._seconds)
        except TimeoutError:
            logger.warning("%s did not end within %.0f s: killed", self._name, self._seconds)
            self._process.kill()
            await self._process.wait()


def supervise_shipper(settings: GatewaySettings, slot: Callable[[], Path]) -> ProcessSupervisor:
    """Of the shipper: a process of its own, so that redaction never takes the request path's core.

    At the end it ships what waits, as far as its time goes; the rest is the next start's.
    """
    seconds = settings.gateway_shipper_stop_seconds + _LEAVING_SECONDS
    return ProcessSupervisor(
        "the shipper",
        lambda: ("services.gateway.shipper.shipper", str(slot())),
        settings,
        seconds,
        "events wait in the spool",
    )


def supervise_worker(settings: GatewaySettings, number: int) -> ProcessSupervisor:
    """Of one of several workers; with the time that its own shipper may take."""
    seconds = settings.gateway_shipper_stop_seconds + _LEAVING_SECONDS + _ANSWERING_SECONDS
    return ProcessSupervisor(
        f"worker {number}", lambda: ("services.gateway.worker", str(number)), settings, seconds, "the others answer"
    )


async def exit_with_parent(parent: int, said: str, before: Callable[[], None] = lambda: None) -> None:
    """Background of a kept process: no orphan. It ends, as on SIGTERM, when the process that keeps it is gone."""
    while os.getppid() == parent:
        await asyncio.sleep(0.5)
    logger.warning("%s", said)
    before()
    os.kill(os.getpid(), signal.SIGTERM)


def environment(settings: GatewaySettings) -> dict[str, str]:
    """The environment of a child that has exactly these settings, and one thread in every numeric library."""
    own = {f"RATCHET_{name.upper()}": value for name, value in _values(settings)}
    path = os.pathsep.join(filter(None, (str(_CODE), os.environ.get("PYTHONPATH"))))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, **own, "PYTHONPATH": path}


def _values(settings: GatewaySettings) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)

    values = ((name, getattr(settings, name)) for name in type(settings).model_fields)
    return [(name, text(value)) for name, value in values if value is not None]
