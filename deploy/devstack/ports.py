"""Ports for a second stack on this machine, and for tests.

Each stays its owner's while what listens there is stopped and started again.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import random
import socket
import tempfile
from pathlib import Path

from deploy.devstack.config import HOST

_FIRST, _LAST = 10_000, 23_999
"""Below Ratchet's own ports and those that a kernel gives to clients and to servers that name none (from 32,768 on):
one of these could be somebody else's by the time that a server which was stopped starts again."""

_taken: set[int] = set()


def port_is_free(port: int, host: str = HOST) -> bool:
    """Return True if a process could listen on this port now. Raises OSError if this machine has no such `host`."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise
            return False
    return True


def take_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on and that no other process takes here before this one has ended.

    Raises OSError when there are not so many.
    """
    taken: list[int] = []
    for port in random.SystemRandom().sample(range(_FIRST, _LAST + 1), _LAST + 1 - _FIRST):
        if port not in _taken and _lock(port) and port_is_free(port):
            _taken.add(port)
            taken.append(port)
        if len(taken) == count:
            return taken
    raise OSError(errno.EADDRINUSE, f"no {count} ports from {_FIRST} to {_LAST} are free")


def _lock(port: int) -> bool:
    try:
        fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@functools.cache
def _locks() -> int:
    """Open the file whose bytes are locked, one for each port. It is never closed: that would release the locks."""
    path = Path(tempfile.gettempdir()) / f"ratchet-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
