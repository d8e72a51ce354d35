"""What is decided about a row once and for all, and how much that leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from schemas.datasets import Fate


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row belongs: `fate` is train, eval or excluded.

    `similarity` is the threshold under which it was decided. `text_hash`: equal for equal texts, whatever is compared
    of them later. A held-out row has its fingerprint: the sketch of what is compared of it, and where that is a part,
    `whole`, that of all of it, and `turn`, the keys by which later turns of its conversation find it (`own_turn`, with
    spaces between them). `user_hash` and `happened_at` (when the prediction was made) say whose it is. `writers`: if
    no reviewer stands for the row, the users who wrote its words, and when the last time; they are not stored.
    """

    fate: Fate
    similarity: float
    user_hash: str | None
    happened_at: datetime
    text_hash: str = ""
    fingerprint: bytes | None = None
    whole: bytes | None = None
    turn: str = ""
    writers: tuple[tuple[str, datetime], ...] = field(default=(), compare=False)


Places = Mapping[str, Place]
"""By prediction."""


@dataclass(frozen=True)
class Exclusions:
    """How many rows are near-copies of held-out ones, and the prediction that attracts the most of them.

    Its text is not quoted: gates are in events, which no erasure reaches. The report quotes what it attracts.
    """

    rows: int = 0
    of: int = 0
    cause: str = ""
    caused: int = 0

    @property
    def share(self) -> float:
        return self.rows / self.of if self.of else 0.0
