"""How long, how often and how much a model server is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """`total`: seconds for an answer; `stream`: for a whole stream; `piece`: a stream's longest silence; `connect`:
    for a connection. `retries` of one request; `opens_after`: failures in a row that open a replica's circuit."""

    total: float = 120.0
    stream: float = 600.0
    piece: float = 60.0
    connect: float = 2.0
    connections: int = 1_000
    retries: int = 2
    opens_after: int = 3
