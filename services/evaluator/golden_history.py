"""What adapters got right of the golden sets, and which of them were promoted: kept in the artifact store.

    golden_results/<adapter>--<set_id>/result.json    `GoldenResult`, written when the adapter is evaluated
    promotions/<adapter>/manifest.json                written when `rollouts.changed` says that it was promoted

Both are named by what they are of and never change, so every evaluator of a task knows the same history.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel

from schemas.tasks import TaskSpec
from services.evaluator.domain import PastResult, Question, golden_key, is_judged
from shared.storage.artifacts import MANIFEST, ArtifactNotFound, ArtifactStore

RESULTS, RESULT_FILE = "golden_results", "result.json"
PROMOTIONS = "promotions"


class GoldenResult(BaseModel):
    """Which golden rows an adapter got right, by the hash of question and answer: no text, so it outlives erasures."""

    adapter: str
    task: str
    base_model: str
    right: dict[str, bool]


def golden_result(
    spec: TaskSpec, adapter: str, golden: Sequence[Question], right: Sequence[bool | None]
) -> GoldenResult:
    """Return which of these rows an adapter got right, of those that can be judged. `right`: None without an answer.

    A result stays for good, and a request that failed on the day says nothing of the adapter.
    """
    judged = {
        golden_key(question, spec): is_right
        for question, is_right in zip(golden, right, strict=True)
        if is_right is not None and is_judged(question, spec)
    }
    return GoldenResult(adapter=adapter, task=spec.name, base_model=spec.base_model, right=judged)


def publish_result(store: ArtifactStore, result: GoldenResult, set_id: str) -> None:
    """Store an adapter's result on a golden set. Its first one stays."""
    manifest = {"adapter": result.adapter, "task": result.task, "set_id": set_id}
    files = {RESULT_FILE: result.model_dump_json().encode(), MANIFEST: json.dumps(manifest).encode()}
    store.publish_files(files, RESULTS, f"{result.adapter}--{set_id}")


def record_promotion(store: ArtifactStore, task: str, adapter: str) -> None:
    """Store that an adapter was promoted. Idempotent."""
    store.publish_files({MANIFEST: json.dumps({"adapter": adapter, "task": task}).encode()}, PROMOTIONS, adapter)


def past_results(store: ArtifactStore, task: str, base_model: str) -> list[PastResult]:
    """Return the results of all adapters of the task and this base model that were ever promoted, on whichever golden
    set. What those of another, larger one got right is no bar: none of them can serve any more.

    Raises DependencyUnavailable: without its history a candidate would be compared with today's production alone.
    """
    promoted = set(store.names(PROMOTIONS))
    beginnings = tuple(f"{adapter}--" for adapter in promoted)
    found = []
    for name in store.names(RESULTS):
        if not name.startswith(beginnings):
            continue
        try:
            stored = store.fetch(store.address(RESULTS, name)) / RESULT_FILE
        except ArtifactNotFound:  # It is being published.
            continue
        result = GoldenResult.model_validate_json(stored.read_bytes())
        # Names of tasks, and so of adapters, may have "--".
        is_of_task = result.task == task and result.adapter in promoted
        if is_of_task and result.base_model == base_model:
            found.append(PastResult(result.adapter, result.right))
    return found
