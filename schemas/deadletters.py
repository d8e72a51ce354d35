"""What is kept of a message that could not be handled. Raw bytes travel as the record's value, this as headers."""

from __future__ import annotations

HEADER_TOPIC = "x-ratchet-topic"
HEADER_PARTITION = "x-ratchet-partition"
HEADER_OFFSET = "x-ratchet-offset"
HEADER_SERVICE = "x-ratchet-service"
HEADER_ERROR = "x-ratchet-error"
HEADER_FAILED_AT = "x-ratchet-failed-at"
HEADER_SEALED = "x-ratchet-sealed"
"""On a letter whose value and error are encrypted: the id of the key. Letters without it are from before."""
HEADER_ONLY = "x-ratchet-only"
"""On a replayed record: the one service it is meant for. All other consumers of the topic pass it by."""
HEADER_REPLAYED = "x-ratchet-replayed"
"""How often the record was replayed already: an operator sees a message that keeps failing."""


def dead_letter_topic(service: str) -> str:
    """One dead-letter topic a service: what it could not handle, from whichever topic."""
    return f"deadletters.{service}.v1"
