"""Copies a version into a folder in a form that other tools read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from schemas.datasets import Example
from services.dataset_builder.publishing.card import CARD, COLUMNS, dataset_card
from services.dataset_builder.publishing.versions import read_examples
from shared.conversation import chat_messages
from shared.errors import ConfigurationError
from shared.storage.artifacts import ArtifactStore

PARTS = ("train", "eval")
Row = dict[str, Any]


def export(store: ArtifactStore, dataset_id: str, form: str, folder: Path) -> dict[str, int]:
    """Write a version into a folder that does not exist or is empty; returns the rows by part.

    `form`: jsonl, parquet, or hf, which is parquet with a card.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} exists already and is not empty", "Name another folder: --output PATH")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made: {error}", "Name another folder: --output PATH") from error
    extension, write = FORMS[form]
    counts = {
        part: write(map(chat_row, read_examples(store, dataset_id, part)), folder / f"{part}.{extension}")
        for part in PARTS
    }
    if form == "hf":
        (folder / CARD).write_text(dataset_card(dataset_id, extension), encoding="utf-8")
    return counts


def chat_row(example: Example) -> Row:
    """Return an example as training tools take it: its messages are those of OpenAI's chat API."""
    row = example.model_dump(mode="json", include=set(COLUMNS))
    chat = {"messages": chat_messages(example.messages), "tools": list(example.tools)}
    asked = {"tool_choice": example.tool_choice, "response_format": example.response_format}
    return row | chat | asked | {"author_hashes": list(example.author_hashes), "predicted_at": example.predicted_at}


def _write_jsonl(rows: Iterable[Row], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=datetime.isoformat) + "\n")
            count += 1
    return count


def _write_parquet(rows: Iterable[Row], path: Path) -> int:
    from datasets import Dataset, Features, Json, List, Value, disable_progress_bars

    disable_progress_bars()
    kinds = {"list: json": List(Json()), "dtype: json": Json(), "list: string": List(Value("string"))}
    features = Features(
        {name: kinds.get(kind) or Value(kind.removeprefix("dtype: ")) for name, kind in COLUMNS.items()}
    )
    table = Dataset.from_list(list(rows), features=features)
    table.to_parquet(str(path))
    return len(table)


Write = Callable[[Iterator[Row], Path], int]
FORMS: dict[str, tuple[str, Write]] = {
    "jsonl": ("jsonl", _write_jsonl),
    "parquet": ("parquet", _write_parquet),
    "hf": ("parquet", _write_parquet),
}
