"""Scans for the seeded personal data at rest: every file of the lake, topics, spools, the database.

The lake is read file by file, removed ones included, because they are still on the disk. Topics are consumed, because
their segments are compressed. `predictions.submitted.v1` is not scanned: it is defined to hold raw text, for a day.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition
from psycopg import sql

from schemas.catalog import HEADER_OFFSET, HEADER_PARTITION, HEADER_TOPIC
from shared.kafka.dead_letters import decrypt_dead_letter
from shared.privacy.encryption import Cipher

_IDLE_SECONDS = 2.0
_TOPICS_SECONDS = 300.0
_MAX_EXAMPLES = 10
_MAX_REASON = 200
_MARKER = re.compile(rb'"marker": ?"([a-z0-9-]+)"')
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
"""delta-rs writes `string`, and `string_view` where it rewrites a file."""


@dataclass
class Leaks:
    """The leaks found. `by_location`: location and kind → number of texts with a seeded value."""

    by_location: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    scanned: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.by_location.values())


class Scanner:
    """Looks for values in texts and bytes. `values`: kind → values."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._kinds = {
            kind: re.compile("|".join(map(re.escape, found)).encode()) for kind, found in values.items() if found
        }
        every = sorted({value for found in values.values() for value in found})
        self._any = "|".join(_quoted(value) for value in every)

    def scan(self, location: str, values: pa.Array | pa.ChunkedArray | Iterable[bytes], leaks: Leaks) -> None:
        """Scan an Arrow array of strings or binaries, or bytes, and record the leaks under `location`."""
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            values = pa.array(list(values), pa.large_binary())
        leaks.scanned[location] += len(values)
        if not len(values):
            return
        hits = values.filter(pc.fill_null(pc.match_substring_regex(values, self._any), False)).to_pylist()
        for hit in hits:
            data = hit.encode() if isinstance(hit, str) else hit
            for kind, pattern in self._kinds.items():
                if found := pattern.search(data):
                    leaks.by_location[f"{location}: {kind}"] += 1
                    if len(leaks.examples) < _MAX_EXAMPLES:
                        around = data[max(0, found.start() - 40) : found.end() + 40]
                        leaks.examples.append(f"{location}: {kind}: {around.decode(errors='replace')}")


def _quoted(value: str) -> str:
    """Return a literal for RE2 at word boundaries: an address must not match inside a longer one."""
    edge = r"\b" if value[0].isalnum() else ""
    return edge + re.sub(r"([^\w\s])", r"\\\1", value) + (r"\b" if value[-1].isalnum() else "")


def scan_lake(scanner: Scanner, lake: Path, leaks: Leaks) -> None:
    """Scan all string columns of all Parquet files below the folder."""
    for path in sorted(lake.rglob("*.parquet")):
        try:
            table = pq.ParquetFile(path).read()
        except FileNotFoundError:
            continue  # Vacuumed in the meantime.
        except pa.ArrowInvalid:
            # A full disk or a kill cut this write short. No table shows the file, but it may hold plain text.
            scanner.scan("lake, torn files", [path.read_bytes()], leaks)
            continue
        for name in table.column_names:
            column = table.column(name)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if any(is_text(column.type) for is_text in _TEXTS):
                scanner.scan("lake", column.cast(pa.large_string()).combine_chunks(), leaks)


def scan_files(scanner: Scanner, location: str, folder: Path, leaks: Leaks) -> int:
    """Scan the raw bytes of all files below a folder. Returns their number."""
    size = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            data = path.read_bytes()
        except OSError:
            continue  # Shipped and removed in the meantime.
        size += len(data)
        scanner.scan(location, [data], leaks)
    return size


def scan_database(scanner: Scanner, url: str, leaks: Leaks) -> None:
    """Scan every row of every table, as text."""
    tables = (
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"
    )
    with psycopg.connect(url) as connection:
        for schema, table in connection.execute(tables).fetchall():
            query = sql.SQL("SELECT t::text FROM {}.{} t").format(sql.Identifier(schema), sql.Identifier(table))
            rows = (row[0].encode() for row in connection.execute(query))
            scanner.scan("database", rows, leaks)


@dataclass
class TopicContents:
    """What was on the broker. `logged`: records by marker; `dead_letters`: service → positions of its records."""

    logged: Counter[str] = field(default_factory=Counter)
    submitted: set[str] = field(default_factory=set)
    dead_letters: dict[str, set[tuple[str, str, str]]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)


def read_topics(scanner: Scanner, kafka: str, topics: Sequence[str], cipher: Cipher, leaks: Leaks) -> TopicContents:
    """Consume all of the topics from their start, and scan those that must not hold raw text. Raises TimeoutError.

    Dead letters are scanned encrypted, as they are stored; `cipher` decrypts their reasons for the report.
    """
    contents = TopicContents()
    values: dict[str, list[bytes]] = {topic: [] for topic in topics}
    for message in records(kafka, topics):
        topic, value = str(message.topic()), message.value() or b""
        headers = {name: value.decode(errors="replace") for name, value in message.headers() or []}
        if topic.startswith("predictions.submitted"):
            contents.submitted.add(_marker(value))
            continue
        if topic.startswith("predictions.logged"):
            contents.logged[_marker(value)] += 1
        elif topic.startswith("deadletters."):
            service = topic.split(".")[1]
            position = (
                headers.get(HEADER_TOPIC, ""),
                headers.get(HEADER_PARTITION, ""),
                headers.get(HEADER_OFFSET, ""),
            )
            contents.dead_letters.setdefault(service, set()).add(position)
            dead_letter = decrypt_dead_letter(cipher, message.offset() or 0, value, headers)
            contents.errors[f"{service}: {dead_letter.topic}: {dead_letter.error[:_MAX_REASON]}"] += 1
        values[topic].append(value + b" " + " ".join(headers.values()).encode())
    for topic, found in values.items():
        if found:
            scanner.scan(f"topic {topic}", found, leaks)
    return contents


def _marker(value: bytes) -> str:
    """The client's marker in an event; empty without one, as in poison."""
    found = _MARKER.search(value)
    return found[1].decode() if found else ""


def records(kafka: str, topics: Sequence[str]) -> Iterable[Message]:
    """Yield every record. tansu reports the end of a partition too early, so a pause without records must follow."""
    consumer = Consumer({
        "bootstrap.servers": kafka, "group.id": "chaos-checker", "enable.auto.commit": False,
        "auto.offset.reset": "earliest", "enable.partition.eof": True, "log_level": 0,
    })  # fmt: skip
    try:
        existing = consumer.list_topics(timeout=20).topics
        unread = {(topic, p) for topic in topics if topic in existing for p in existing[topic].partitions}
        consumer.assign([TopicPartition(*partition, OFFSET_BEGINNING) for partition in unread])
        last, deadline = time.monotonic(), time.monotonic() + _TOPICS_SECONDS
        while time.monotonic() < deadline:
            for message in consumer.consume(2_000, timeout=0.5):
                error = message.error()
                if error is None:
                    last = time.monotonic()
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard((message.topic(), message.partition()))
            if not unread and time.monotonic() - last > _IDLE_SECONDS:
                return
        raise TimeoutError(f"the topics could not be read to their ends within {_TOPICS_SECONDS:.0f} s")
    finally:
        consumer.close()
