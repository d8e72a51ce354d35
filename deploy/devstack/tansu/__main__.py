"""`python -m deploy.devstack.tansu PROGRAM PORT INTERNAL_PORT`: tansu, the proxy before it, and retention.

It ends when tansu ends, and tansu ends with it, so that the supervisor restarts both. The object store's address and
keys are in the environment, `AWS_…`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from datetime import UTC, datetime

from obstore.exceptions import BaseError

from deploy.devstack.config import HOST
from deploy.devstack.object_store import open_bucket
from deploy.devstack.supervision.processes import die_with_parent
from deploy.devstack.tansu import BUCKET
from deploy.devstack.tansu.proxy import ProduceProxy
from deploy.devstack.tansu.retention import delete_expired

log = logging.getLogger("tansu")

_START_SECONDS = 30.0
_FIRST_RETENTION_SECONDS, _RETENTION_SECONDS = 120.0, 3600.0


async def run(program: str, port: int, internal_port: int) -> int:
    """Run until tansu ends or a stop signal arrives. Returns the exit code."""
    listener, advertised = f"tcp://{HOST}:{internal_port}", f"tcp://{HOST}:{port}"
    argv = [program, "broker", "--silent", "--listener-url", listener, "--advertised-listener-url", advertised]
    tansu = await asyncio.create_subprocess_exec(
        *argv, "--storage-engine", f"s3://{BUCKET}/", preexec_fn=die_with_parent
    )
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    ended = asyncio.create_task(tansu.wait())
    stopped = asyncio.create_task(stopping.wait())
    await _wait_for_port(internal_port, ended)
    server = await asyncio.start_server(ProduceProxy(HOST, internal_port).serve, HOST, port)
    retention = asyncio.create_task(_retain_forever())
    log.info("listening on %s:%d, tansu on %d", HOST, port, internal_port)
    await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
    retention.cancel()
    server.close()
    if tansu.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            tansu.terminate()
        await ended
        return 0
    log.error("tansu exited with code %d", tansu.returncode)
    return 1


async def _wait_for_port(port: int, ended: asyncio.Task[int]) -> None:
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    while not ended.done() and asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, port)
            writer.close()
            return
        await asyncio.sleep(0.05)


async def _retain_forever() -> None:
    """Delete what the topics no longer promise to keep."""
    await asyncio.sleep(_FIRST_RETENTION_SECONDS)
    while True:
        try:
            deleted = await asyncio.to_thread(delete_expired, open_bucket(BUCKET), datetime.now(UTC))
            log.info("retention: %d expired batches deleted", deleted)
        except BaseError as error:
            reason = str(error).partition("\n")[0]  # A page of debugging output follows it.
            log.warning("retention failed, retrying in %.0f s: %s", _RETENTION_SECONDS, reason)
        await asyncio.sleep(_RETENTION_SECONDS)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.exit(asyncio.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
