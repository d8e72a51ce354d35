"""A gateway of several worker processes, which answer on the same port, each with a spool and a shipper of its own.

They share the port, the settings and the rate limits of API keys. The kernel distributes connections among the live
workers. One that dies loses only the answers in flight: whatever it had answered is in its spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from services.gateway.auth.rate_limits import clear_buckets
from services.gateway.processes.supervisor import supervise_worker
from services.gateway.settings import GatewaySettings
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.service import Service, unusable_address


def build_workers(settings: GatewaySettings, name: str) -> Service:
    """The process that supervises the workers. Raises ConfigurationError without a port that they can share."""
    if settings.gateway_port == 0:
        raise ConfigurationError("several workers need one port", "Set RATCHET_GATEWAY_PORT, or one worker.")
    supervisors = [supervise_worker(settings, number) for number in range(settings.gateway_workers)]

    async def prepare() -> None:
        _check_port(name, settings.gateway_host, settings.gateway_port)
        clear_buckets(settings.limits_folder)

    async def close() -> None:
        await asyncio.gather(*(supervisor.close() for supervisor in supervisors))

    background = [supervisor.run_forever for supervisor in supervisors]
    return Service(name, None, prepare=[prepare], background=background, close=[close])


def _check_port(name: str, host: str, port: int) -> None:
    """Raises DependencyUnavailable if another process listens on the port: the workers would share it with that one.

    It may be workers of a supervisor that was killed, which are about to end.
    """
    with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DependencyUnavailable(*unusable_address(name, host, port, error)) from error
