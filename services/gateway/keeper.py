"""Keeps the shipper running: a process of its own, so that redaction never takes the request path's core."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from services.gateway.settings import GatewaySettings

_CODE = Path(__file__).parents[2]
_LONGEST_PAUSE = 30.0
_HEALTHY_SECONDS = 60.0
_LEAVING_SECONDS = 8.0
"""What a shipper takes to leave its consumer group and its connections, beside shipping what waits."""

logger = logging.getLogger(__name__)


class Keeper:
    """Starts the shipper of a slot, starts it again when it died, ends it with the gateway."""

    def __init__(self, settings: GatewaySettings, slot: Callable[[], Path]) -> None:
        self._settings = settings
        self._slot = slot
        self._process: asyncio.subprocess.Process | None = None

    async def keep_shipper(self) -> None:
        """Background. A death is logged and followed by a pause, longer each time, until one lives for a minute."""
        pause = 0.5
        while True:
            started = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.gateway.shipper", str(self._slot()), str(os.getpid()),
                env=environment(self._settings), stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # A Ctrl-C is the gateway's: it ends the shipper after its own last answer.
            )  # fmt: skip
            code = await self._process.wait()
            if time.monotonic() - started > _HEALTHY_SECONDS:
                pause = 0.5
            logger.error("the shipper ended with %s, again in %.1f s; events wait in the spool", code, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def close(self) -> None:
        """Let the shipper ship what waits, within its time, then end it. What is left is the next start's."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            seconds = self._settings.gateway_shipper_stop_seconds + _LEAVING_SECONDS
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            logger.warning("the shipper did not end within %.0f s: killed; what it held is shipped again", seconds)
            self._process.kill()
            await self._process.wait()


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
