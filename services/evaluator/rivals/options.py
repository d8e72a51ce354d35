"""What the evaluation job is told about its rivals."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel


class RivalOptions(BaseModel):
    """`embedder`: the folder of the sentence encoder; `rows`: held-out rows that a prompt is asked."""

    embedder: Path
    lake: str
    prices_file: Path | None
    rows: int
