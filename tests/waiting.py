"""How the tests wait: until something is so, however busy the machine is. Only a test that fails waits to the end."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 300.0
"""How long a test waits for what must come. Low priorities make it long: beside a training job a shipper takes more
than a minute to load its language model. How soon things come, the benchmarks measure."""


async def until(find: Callable[[], Any], explain: str | Callable[[], str] = "") -> Any:
    """Return what `find`, plain or a coroutine function, finds that is true. Raises TimeoutError with `explain`."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                began = time.monotonic()
                found = find()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return found
                took = time.monotonic() - began  # What is costly to look at is looked at less often.
                await asyncio.sleep(min(max(0.05, 3 * took), 0.5))
    except TimeoutError:
        told = explain if isinstance(explain, str) else explain()
        raise TimeoutError(f"not within {PATIENCE_SECONDS:.0f} s: {told or inspect.getsource(find).strip()}") from None
