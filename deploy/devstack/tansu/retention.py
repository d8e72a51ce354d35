"""Deletes the records that their topics no longer promise to keep: `python -m deploy.devstack.tansu.retention`.

tansu stores a topic's `retention.ms` and does nothing about it. A batch is one object, named by its first offset; it is
deleted when it is older than that. The newest batch of a partition always stays, because tansu derives the partition's
end offset from it. Compacted topics are left: they have a record for each change of a task or of a rollout.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pyarrow.fs import FileInfo, FileSelector, FileSystem

from deploy.devstack.object_store import open_bucket
from deploy.devstack.tansu import BUCKET

log = logging.getLogger("tansu.retention")

CLUSTER = "clusters/tansu_cluster"
"""Its folder in the bucket: `meta.json` and `topics/<topic>/partitions/<number>/records/<offset>.batch`."""


@dataclass(frozen=True)
class Kept:
    """What is in the store. `bytes`: of records, as they were sent (compressed)."""

    topics: int = 0
    batches: int = 0
    bytes: int = 0


def delete_expired(store: FileSystem, now: datetime) -> int:
    """Delete the batches that are older than their topic's retention. Returns how many.

    `store`: the bucket, opened with `open_bucket`. tansu ends with a panic at an object that is no batch.
    """
    deleted = 0
    for topic, retention in retentions(store).items():
        for batches in partitions(store, topic):
            expired = [batch for batch in batches[:-1] if batch.mtime < now - retention]
            for batch in expired:
                store.delete_file(batch.path)
            deleted += len(expired)
    return deleted


def retentions(store: FileSystem) -> dict[str, timedelta]:
    """Return the retention of each topic that has one and is not compacted."""
    found = {}
    for name, topic in read_topics(store).items():
        configs = {config["name"]: config["value"] for config in topic["topic"]["configs"] or ()}
        milliseconds = int(configs.get("retention.ms") or -1)
        if milliseconds >= 0 and "compact" not in (configs.get("cleanup.policy") or ""):
            found[name] = timedelta(milliseconds=milliseconds)
    return found


def read_topics(store: FileSystem) -> dict[str, dict[str, dict[str, list[dict[str, str]] | None]]]:
    """Return the topics as tansu stores them; none before the first is created."""
    path = f"{CLUSTER}/meta.json"
    if not store.get_file_info(path).is_file:
        return {}
    with store.open_input_stream(path) as file:
        topics: dict[str, dict[str, dict[str, list[dict[str, str]] | None]]] = json.loads(file.read())["topics"]
    return topics


def partitions(store: FileSystem, topic: str) -> Iterator[list[FileInfo]]:
    """Yield the batches of each partition, oldest first."""
    folders = store.get_file_info(FileSelector(f"{CLUSTER}/topics/{topic}/partitions", allow_not_found=True))
    for folder in folders:
        found = store.get_file_info(FileSelector(f"{folder.path}/records", allow_not_found=True))
        yield sorted((file for file in found if file.is_file), key=lambda file: file.path)


def kept(store: FileSystem) -> Kept:
    """Return what the broker has stored."""
    topics = read_topics(store)
    batches = [batch for topic in topics for found in partitions(store, topic) for batch in found]
    return Kept(len(topics), len(batches), sum(batch.size for batch in batches))


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    deleted = delete_expired(open_bucket(BUCKET), datetime.now(UTC))
    log.info("%d expired batches deleted", deleted)


if __name__ == "__main__":
    main()
