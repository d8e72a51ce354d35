"""A gateway of several processes: each answers on the same port, with a spool and a shipper of its own.

They share nothing but the port, the settings and the limits of API keys. The kernel deals connections out to those that
live, so one that dies takes with it what it was answering and no more; what it had accepted is in its spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from services.gateway.auth.rate_limits import clear_buckets
from services.gateway.processes.supervisor import supervise_worker
from services.gateway.settings import GatewaySettings
from shared.errors import ConfigurationError
from shared.service import Service


def build_workers(settings: GatewaySettings, name: str) -> Service:
    """The process that keeps them. Raises ConfigurationError without a port that they could share."""
    if settings.gateway_port == 0:
        raise ConfigurationError("several workers need one port", "Set RATCHET_GATEWAY_PORT, or one worker.")
    keepers = [supervise_worker(settings, number) for number in range(settings.gateway_workers)]

    async def prepare() -> None:
        _check_port(settings.gateway_host, settings.gateway_port)
        clear_buckets(settings.limits_folder)

    async def close() -> None:
        await asyncio.gather(*(one.close() for one in keepers))

    return Service(name, None, prepare=[prepare], background=[one.keep for one in keepers], close=[close])


def _check_port(host: str, port: int) -> None:
    """Workers would share the port with a stranger of the same user, and each get a part of the requests.

    Raises OSError while somebody listens there.
    """
    with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((host, port))
