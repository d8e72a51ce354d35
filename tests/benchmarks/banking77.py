"""Banking77: customers' questions and their intents, and the task of naming these."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from schemas.tasks import TaskKind, TaskSpec
from tests.conftest import ROOT

BANKING77 = Path(os.environ.get("RATCHET_BANKING77") or ROOT.parent / "shared" / "data" / "banking77")
PROMPT = "Name the intent of the customer's question."


def banking77(part: str) -> list[tuple[str, str]]:
    """Return (text, intent) of `train` or `test`."""
    with (BANKING77 / f"{part}.csv").open(encoding="utf-8") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def task_spec(name: str) -> TaskSpec:
    """Return a task with Banking77's intents."""
    labels = tuple(sorted({label for _, label in banking77("train")}))
    return TaskSpec(name=name, kind=TaskKind.CLASSIFICATION, system_prompt=PROMPT, labels=labels)
