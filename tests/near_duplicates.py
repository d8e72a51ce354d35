"""An index of texts for tests: whether a further text is, or nearly is, one of them."""

from __future__ import annotations

from collections.abc import Iterable

from shared.model.near_duplicates import NearSketches
from shared.model.sketches import sketch_folded, sketch_texts
from shared.model.templates import find_templates
from shared.model.texts import fold


class NearDuplicates:
    """`similarity`: the Jaccard similarity of shingles from which two texts are near-duplicates, in (0, 1]."""

    def __init__(self, texts: Iterable[str], similarity: float = 0.8) -> None:
        folded = [fold(text) for text in texts]
        self._templates = find_templates(folded)
        self._index = NearSketches(sketch_folded(folded, self._templates), similarity)

    def __len__(self) -> int:
        return len(self._index)

    def contains(self, text: str) -> bool:
        (sketch,) = sketch_texts([text], self._templates)
        return self._index.contains(sketch)
