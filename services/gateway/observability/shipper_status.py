"""The shipper's status: a small file that the shipper, a process of its own, writes and the gateway reports."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

STATUS_FILE = "shipper.json"
STATUS_SECONDS = 1.0
"""Time between two writes."""
_DEAD_SECONDS = 15.0
"""A shipper whose status is older is dead or stuck."""


@dataclass
class ShipperStatus:
    """Counters since the shipper started; a plain record, and the JSON of the file.

    `at`, when it was written, and `oldest`, when the oldest waiting event was appended, are Unix seconds. `oldest` is
    None if nothing waits. `submitted_logged`: predictions of direct producers that were logged. `truncated`: events
    that were cut because they had grown too large for Kafka, or from which base64 was left out. `media_…`: of the media
    of the home, 0 in all shippers but the one that uploads them.
    """

    at: float = 0.0
    pid: int = 0
    shipped: Counter[str] = field(default_factory=Counter)
    submitted_logged: int = 0
    dead_lettered: int = 0
    truncated: int = 0
    redactions: Counter[str] = field(default_factory=Counter)
    redacted_texts: int = 0
    redaction_seconds: float = 0.0
    oldest: float | None = None
    waiting_bytes: int = 0
    incomplete_bytes: int = 0
    quarantined: int = 0
    error: str = ""
    media_oldest: float | None = None
    media_bytes: int = 0
    media_uploaded: int = 0
    media_forgotten: int = 0
    media_error: str = ""

    def write(self, folder: Path) -> None:
        """Write the file atomically. Without fsync: a crash loses the counters of a second."""
        self.at = time.time()
        temporary = folder / f".{STATUS_FILE}"
        temporary.write_text(json.dumps(vars(self)))
        temporary.replace(folder / STATUS_FILE)


def read_shipper_status(folder: Path) -> ShipperStatus | None:
    """The shipper's last status; None if there is none or the file is invalid."""
    try:
        fields = json.loads((folder / STATUS_FILE).read_text())
        fields["shipped"], fields["redactions"] = Counter(fields["shipped"]), Counter(fields["redactions"])
        return ShipperStatus(**fields)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def shipper_problems(status: ShipperStatus | None, late_seconds: float, now: float) -> list[str]:
    """The shipper's problems, for an operator. None of them loses an event."""
    if status is None or now - status.at > _DEAD_SECONDS:
        return ["the shipper is not running: events wait in the spool, nothing reaches Kafka"]
    problems = []
    if (waited := _waited(status.oldest, now)) > late_seconds:
        reason = f" ({status.error})" if status.error else ""
        problems.append(f"the shipper is behind: an event has waited for Kafka for {waited:.0f} s{reason}")
    if (waited := _waited(status.media_oldest, now)) > late_seconds:
        reason = f" ({status.media_error})" if status.media_error else ""
        problems.append(f"media have waited for the artifact store for {waited:.0f} s{reason}")
    return problems


def _waited(since: float | None, now: float) -> float:
    return max(0.0, now - since) if since is not None else 0.0
