"""How the shipper is doing, told by a small file: it is another process, and /metrics is the gateway's."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

STATUS_FILE = "shipper.json"
STATUS_SECONDS = 1.0
"""Between two writes. Older than some of these: the shipper is dead or stuck."""
_SILENT_SECONDS = 15.0


@dataclass
class ShipperStatus:
    """Counts since the shipper started. `at` and `oldest`: Unix seconds; `oldest` None: nothing waits."""

    at: float = 0.0
    pid: int = 0
    shipped: Counter[str] = field(default_factory=Counter)
    taken_in: int = 0
    buried: int = 0
    redactions: Counter[str] = field(default_factory=Counter)
    redacted_texts: int = 0
    redaction_seconds: float = 0.0
    oldest: float | None = None
    waiting_bytes: int = 0
    torn_bytes: int = 0
    quarantined: int = 0
    error: str = ""

    def write(self, folder: Path) -> None:
        """Whole or not at all. Without fsync: what is lost in a crash is a second old."""
        self.at = time.time()
        fresh = folder / f".{STATUS_FILE}"
        fresh.write_text(json.dumps(vars(self)))
        fresh.replace(folder / STATUS_FILE)

    def age(self, now: float) -> float:
        """Seconds that the oldest event has waited for Kafka."""
        return max(0.0, now - self.oldest) if self.oldest is not None else 0.0


def read_shipper_status(folder: Path) -> ShipperStatus | None:
    """What the shipper wrote last; None if it never did, or if the file is none of ours."""
    try:
        told = json.loads((folder / STATUS_FILE).read_text())
        told["shipped"], told["redactions"] = Counter(told["shipped"]), Counter(told["redactions"])
        return ShipperStatus(**told)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def shipper_problems(status: ShipperStatus | None, late_seconds: float, now: float) -> list[str]:
    """What an operator should know of the shipper, in words. Nothing is lost by any of it."""
    if status is None or now - status.at > _SILENT_SECONDS:
        return ["the shipper is not running: events wait in the spool, nothing reaches Kafka"]
    if (age := status.age(now)) > late_seconds:
        why = f" ({status.error})" if status.error else ""
        return [f"the shipper is behind: an event has waited for Kafka for {age:.0f} s{why}"]
    return []
