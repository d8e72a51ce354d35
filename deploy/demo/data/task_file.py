"""The task's YAML: the shipped support desk, or one made for anybody's file with the support desk's settings."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Container, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from schemas.tasks import TaskSpec
from services.scheduler.task_files import apply_task
from shared.errors import ConfigurationError

DEPLOY = Path(__file__).parents[2]
SUPPORT_DESK = DEPLOY / "tasks" / "support-desk.yaml"
SUPPORT_DESK_DATA = DEPLOY / "demo" / "data" / "support_desk.csv"
SYSTEM_PROMPT = "Classify the user's message. Answer with one label."
"""For anybody's file. It does not list the labels: answers are constrained to them, and tokens are time on a CPU."""
OWN_DATA_EPOCHS = 3
"""One more than the support desk's, whose labels are single words: others' are longer, and a pass more learns them."""
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_SAYS_NOTHING = {"train", "test", "data", "dataset", "rows", "labels"}


def name_for(path: Path) -> str:
    """A task name from a file's name; with its folder's where the file is called `train.csv` or the like."""
    stem = _NOT_IN_NAMES.sub("-", path.stem.lower()).strip("-")
    if stem in _SAYS_NOTHING:
        folder = _NOT_IN_NAMES.sub("-", path.absolute().parent.name.lower()).strip("-")
        stem = f"{folder}-{stem}".strip("-")
    return stem[:50].strip("-") or "task"


def free_name(wanted: str, taken: Container[str]) -> str:
    """`wanted`, or `wanted-2`, `-3` …: a turn on a name that was used already would not begin at the beginning."""
    if wanted not in taken:
        return wanted
    return next(name for number in count(2) if (name := f"{wanted}-{number}") not in taken)


def apply(folder: Path, name: str, labels: Sequence[str] | None) -> TaskSpec:
    """Put the task's file into `folder`, where the scheduler looks. `labels` None: the support desk as shipped.

    Raises ConfigurationError for what the scheduler would refuse.
    """
    yaml = YAML(typ="rt")
    yaml.width = 4_096
    document: Any = yaml.load(SUPPORT_DESK.read_text(encoding="utf-8"))
    document["name"] = name
    if labels is None:
        golden = document.get("golden_file")
        if golden:
            document["golden_file"] = str((SUPPORT_DESK.parent / golden).absolute())
    else:
        for key in ("golden_file", "golden"):
            document.pop(key, None)
        document["system_prompt"] = SYSTEM_PROMPT
        document["training"]["epochs"] = OWN_DATA_EPOCHS
        document["labels"] = list(labels)
        document["max_answer_tokens"] = max(16, max(len(label) for label in labels))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / f"{name}.yaml"
        with source.open("w", encoding="utf-8") as file:
            yaml.dump(document, file)
        return apply_task(source, folder)


def shipped() -> tuple[Path, Path]:
    """The shipped task and its data. Raises ConfigurationError where they are not beside the package."""
    for path in (SUPPORT_DESK, SUPPORT_DESK_DATA):
        if not path.is_file():
            raise ConfigurationError(f"the shipped file is not there: {path}", "Run from a checkout of the repository.")
    return SUPPORT_DESK, SUPPORT_DESK_DATA
