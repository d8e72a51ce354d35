"""Ctrl-C and SIGTERM end a run cleanly: its processes are stopped first."""

from __future__ import annotations

import asyncio
import signal


def cancel_on_signals() -> None:
    """Have both signals cancel the running task, which then cleans up."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
