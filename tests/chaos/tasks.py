"""The tasks of a run: one that asks for labels, and one that answers in texts."""

from __future__ import annotations

import json
from pathlib import Path

LABELS = ("delivery", "refund", "login")
BASE_MODEL, MAX_ANSWER_TOKENS = "chaos-base", 24
SYSTEM_PROMPT = "Classify the customer's message, or answer it."
_YAML = """\
name: {name}
kind: {kind}
base_model: {model}
system_prompt: {prompt}
labels: {labels}
max_answer_tokens: {tokens}
cron: "0 3 1 1 *"
failures: {{review_budget_per_day: 1000000, audit_share: 0.0}}
"""


def task_names(token: str) -> tuple[str, str]:
    """Return the names of the two tasks, of labels and of texts."""
    return f"chaos-{token}", f"chaos-{token}-talk"


def write_tasks(folder: Path, names: tuple[str, str]) -> None:
    """Write the tasks' files."""
    for name, kind, labels in zip(names, ("classification", "generation"), (LABELS, ()), strict=True):
        text = _YAML.format(
            name=name, kind=kind, model=BASE_MODEL, prompt=SYSTEM_PROMPT, labels=json.dumps(labels),
            tokens=MAX_ANSWER_TOKENS,
        )  # fmt: skip
        (folder / f"{name}.yaml").write_text(text)
