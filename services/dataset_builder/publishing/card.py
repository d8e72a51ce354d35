"""README.md of a folder with a version: `datasets.load_dataset(FOLDER)` reads its splits and columns from it.

Without the columns the loader takes them from the first rows: a tool that only the evaluation set has would stop it.
"""

from __future__ import annotations

CARD = "README.md"
COLUMNS = {
    "example_id": "dtype: string",
    "messages": "list: json",
    "tools": "list: json",
    "tool_choice": "dtype: json",
    "response_format": "dtype: json",
    "group": "dtype: string",
    "seen": "dtype: bool",
    "origin": "dtype: string",
    "weight": "dtype: float64",
    "mode_id": "dtype: string",
    "app": "dtype: string",
    "purpose": "dtype: string",
    "drawn_probability": "dtype: float64",
    "prediction_ids": "list: string",
    "correction_ids": "list: string",
    "user_hash": "dtype: string",
    "author_hashes": "list: string",
    "predicted_at": "dtype: timestamp[us, tz=UTC]",
}
"""The columns of an example in the terms of Hugging Face: conversations and tools are JSON, since no two are alike."""


def dataset_card(dataset_id: str, extension: str) -> str:
    """Return the card of a folder with train and eval files of this extension: jsonl or parquet."""
    columns = "\n".join(f"  - name: {name}\n    {kind}" for name, kind in COLUMNS.items())
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: train.{extension}
  - split: eval
    path: eval.{extension}
dataset_info:
  features:
{columns}
---

# {dataset_id}

A version of a task's dataset, built by Ratchet from people's corrections: `train` is trained on, `eval` is held out. It
never changes; its name is a hash of its rows. `datasets.load_dataset` loads this folder.
"""
