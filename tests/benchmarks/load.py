"""The load generator: raw connections on uvloop, each sending its next request as soon as it has an answer.

Each request has a number of its own in its text, so that no two are equal and no cache is measured; the texts around
it take turns, so that no compressor finds the last request in this one. The generator is a
process of its own: `python -m tests.benchmarks.load` reads one `Load` per line of JSON and writes one `LoadResult` per
line. It parses no more of HTTP than it must: where an answer ends, and whether it is a 200.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit

import uvloop

from tests.benchmarks.upstream import FIRST, NUMBER
from tests.conftest import ROOT

_END_OF_CHUNKS = b"0\r\n\r\n"
_FIRST_TOKEN = FIRST.encode()
SETTLE_SECONDS = 0.2
"""Requests of the first moments are not counted."""
_TIMEOUT_SECONDS = 30.0
"""A request that takes longer ends the run."""


@dataclass(frozen=True)
class Load:
    """What to send, one body after the other, where to, and over how many connections."""

    url: str
    headers: Mapping[str, str]
    bodies: Sequence[str]
    connections: int
    seconds: float


@dataclass
class LoadResult:
    """The result of a load.

    `seconds`: of each request, to its last byte. `first`: to the first token. `wall`: of the whole load. `busy`: the
    share of it that the generator itself computed; near 1 it is the bottleneck. `refused`: answers other than 200, with
    the first of them in `sample`.
    """

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    wall: float = 0.0
    busy: float = 0.0
    requests: int = 0
    asked: int = 0
    refused: int = 0
    sample: str = ""


_Request = tuple[bytes, bytes]
"""What stands before and behind a request's number."""


class _Connection(asyncio.Protocol):
    def __init__(
        self, requests: Sequence[_Request], is_over: Callable[[], bool], counted_from: float, answered: LoadResult
    ) -> None:
        self._requests = requests
        self._is_over = is_over
        self._counted_from = counted_from
        self._answered = answered
        self._buffer = b""
        self._asked = 0.0
        self._first: float | None = None
        self._expected: int | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        answered, self._asked = self._answered, time.perf_counter()
        if self._is_over():
            self._transport.close()
            return
        self._buffer, self._first, self._expected = b"", None, None
        answered.asked += 1
        before, after = self._requests[answered.asked % len(self._requests)]
        self._transport.write(b"%b%0*d%b" % (before, len(NUMBER), answered.asked, after))

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if self._first is None and _FIRST_TOKEN in data:
            self._first = time.perf_counter()
        if self._expected is None and (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            position = head.find(b"content-length:")
            length = int(head[position + 15 :].split(b"\r\n", 1)[0]) if position >= 0 else -1
            self._expected = end + 4 + length if length >= 0 else 0
        if self._expected is None:
            return
        if len(self._buffer) >= self._expected if self._expected else self._buffer.endswith(_END_OF_CHUNKS):
            self._record(time.perf_counter())
            self._ask()

    def _record(self, now: float) -> None:
        answered = self._answered
        answered.requests += 1
        if self._buffer[9:12] != b"200" or self._first is None:
            answered.refused += 1
            answered.sample = answered.sample or self._buffer[:600].decode(errors="replace")
        elif self._asked > self._counted_from:
            answered.seconds.append(now - self._asked)
            answered.first.append(self._first - self._asked)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def ask(load: Load) -> LoadResult:
    """Send requests over `connections` for `seconds`; a connection that the server closes is opened again.

    Whoever is so slow that it has not answered one request of each by then has longer.
    """
    parts = urlsplit(load.url)
    requests = [_request(load, body.encode()) for body in load.bodies]
    answered, loop = LoadResult(), asyncio.get_running_loop()
    began, computed = time.perf_counter(), time.process_time()
    until = began + load.seconds

    def is_over() -> bool:
        enough = len(answered.seconds) >= load.connections or bool(answered.refused)
        return enough and time.perf_counter() > until

    async def ask_until_end() -> None:
        while not is_over():
            _, connection = await loop.create_connection(
                lambda: _Connection(requests, is_over, began + SETTLE_SECONDS, answered), parts.hostname, parts.port
            )
            await connection.closed

    gc.disable()
    async with asyncio.timeout(load.seconds + _TIMEOUT_SECONDS):
        await asyncio.gather(*(ask_until_end() for _ in range(load.connections)))
    gc.enable()
    answered.wall = time.perf_counter() - began
    answered.busy = (time.process_time() - computed) / answered.wall
    return answered


def _request(load: Load, body: bytes) -> _Request:
    parts = urlsplit(load.url)
    lines = {"host": parts.netloc, "content-type": "application/json", "content-length": str(len(body)), **load.headers}
    head = f"POST {parts.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    before, _, after = body.partition(NUMBER)
    return head.encode() + b"\r\n" + before, after


class Generator:
    """The load generator's process, seen from the benchmark."""

    def __enter__(self) -> Self:
        argv = [sys.executable, "-m", "tests.benchmarks.load"]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def run(self, load: Load) -> LoadResult:
        """Run a load. Raises RuntimeError if any request failed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(asdict(load)), file=self._process.stdin, flush=True)
        answered = LoadResult(**json.loads(self._process.stdout.readline()))
        if answered.refused or not answered.seconds:
            raise RuntimeError(
                f"{load.url}: {answered.refused} of {answered.requests} requests failed, {answered.sample!r}"
            )
        return answered


def main() -> None:
    """Entry point."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            print(json.dumps(asdict(runner.run(ask(Load(**json.loads(line)))))), flush=True)


if __name__ == "__main__":
    main()
