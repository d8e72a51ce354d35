"""Deletes the records that their topics no longer promise to keep.

tansu stores a topic's `retention.ms` and does nothing about it. A batch is one object, named by its first offset; it is
deleted when it is older than that. The newest batch of a partition always stays, because tansu derives the partition's
end offset from it. Compacted topics are left: they have a record for each change of a task or of a rollout.
"""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import obstore

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

CLUSTER = "clusters/tansu_cluster"
"""Its folder in the bucket: `meta.json` and `topics/<topic>/partitions/<number>/records/<offset>.batch`."""


def delete_expired(store: ObjectStore, now: datetime) -> int:
    """Delete the batches in the bucket that are older than their topic's retention. Returns how many."""
    deleted = 0
    for topic, retention in retentions(store).items():
        for batches in partitions(store, topic):
            expired = [batch["path"] for batch in batches[:-1] if batch["last_modified"] < now - retention]
            obstore.delete(store, expired)
            deleted += len(expired)
    return deleted


def retentions(store: ObjectStore) -> dict[str, timedelta]:
    """Return the retention of each topic that has one and is not compacted."""
    found = {}
    for name, topic in read_topics(store).items():
        configs = {config["name"]: config["value"] for config in topic["topic"]["configs"] or ()}
        milliseconds = int(configs.get("retention.ms") or -1)
        if milliseconds >= 0 and "compact" not in (configs.get("cleanup.policy") or ""):
            found[name] = timedelta(milliseconds=milliseconds)
    return found


def read_topics(store: ObjectStore) -> dict[str, dict[str, dict[str, list[dict[str, str]] | None]]]:
    """Return the topics as tansu stores them; none before the first is created."""
    try:
        meta = bytes(obstore.get(store, f"{CLUSTER}/meta.json").bytes())
    except FileNotFoundError:
        return {}
    topics: dict[str, dict[str, dict[str, list[dict[str, str]] | None]]] = json.loads(meta)["topics"]
    return topics


def partitions(store: ObjectStore, topic: str) -> list[list[ObjectMeta]]:
    """Return the batches of each partition, oldest first."""
    found: dict[str, list[ObjectMeta]] = defaultdict(list)
    for objects in obstore.list(store, f"{CLUSTER}/topics/{topic}/partitions", chunk_size=1000):
        for batch in objects:
            folder, _, name = batch["path"].rpartition("/")
            if name.endswith(".batch"):
                found[folder].append(batch)
    return [sorted(batches, key=lambda batch: batch["path"]) for batches in found.values()]
