"""Ports stay their owner's while what listens there is stopped and started again."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from deploy.devstack import ports
from deploy.devstack.ports import port_is_free, take_ports
from tests.conftest import ROOT

TAKE_ALL = """
import sys
from deploy.devstack import ports
ports._FIRST, ports._LAST = int(sys.argv[1]), int(sys.argv[2])
try:
    print(*ports.take_ports(int(sys.argv[3])))
except OSError as error:
    print(error)
"""


def test_no_port_is_one_that_the_kernel_gives_away() -> None:
    taken = take_ports(50)
    assert len(set(taken)) == 50
    assert max(taken) < 24_000
    assert all(map(port_is_free, taken))


def test_another_process_takes_none_of_this_ones_ports_even_while_nobody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ports, "_FIRST", 23_980)
    mine = take_ports(5)
    theirs = take_in_another_process(23_980, 23_999, 8)
    assert len(theirs) == 8
    assert not {str(port) for port in mine} & set(theirs)
    assert "no 16 ports" in " ".join(take_in_another_process(23_980, 23_999, 16))


def test_a_port_with_a_listener_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = take_ports(1)
    ports._taken.discard(port)
    monkeypatch.setattr(ports, "_FIRST", port)
    monkeypatch.setattr(ports, "_LAST", port)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="no 1 ports"):
        take_ports(1)
    assert take_ports(1) == [port]


def take_in_another_process(first: int, last: int, count: int) -> list[str]:
    command = [sys.executable, "-c", TAKE_ALL, str(first), str(last), str(count)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
