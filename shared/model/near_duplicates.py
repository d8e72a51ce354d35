"""Texts that are the same but for a typo, a comma or a word: found by MinHash, confirmed by exact Jaccard.

    normalise   case, Unicode form, punctuation and spaces do not make a text another one
    NearDuplicates  an index: is there a near-copy of this text in it?
    group_near_duplicates   a list of texts to groups: near-copies, and near-copies of those, share one

MinHash proposes (locality-sensitive hashing over character 4-shingles), the exact Jaccard similarity decides. So a
group is never wrong by chance, and what the hashing misses at the asked similarity is under one in 100,000.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from rensa import RMinHash, RMinHashLSH

from shared.identity import content_hash

SHINGLE = 4
PERMUTATIONS = 128
_SEED = 20
_MISS = 1e-5
_NOT_WORDS = re.compile(r"[^\w]+|_+")


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, punctuation and runs of white space to one space. A text of signs alone stays."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _NOT_WORDS.sub(" ", folded).strip() or " ".join(folded.split())


def text_hash(text: str) -> str:
    """24 hex digits, the same for texts that are equal after `normalise`."""
    return content_hash(normalise(text), length=24)


def shingles(text: str) -> frozenset[str]:
    """All runs of four characters of the normalised text; the whole of it where it is shorter."""
    clean = normalise(text)
    if len(clean) <= SHINGLE:
        return frozenset((clean,))
    return frozenset(clean[i : i + SHINGLE] for i in range(len(clean) - SHINGLE + 1))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared shingles over all shingles, 0 to 1."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


class NearDuplicates:
    """An index of texts, asked whether it holds a near-copy. Not for use by two threads at once."""

    def __init__(self, texts: Iterable[str] = (), similarity: float = 0.8) -> None:
        """`similarity`: exact Jaccard similarity of shingles from which two texts are near-copies, in (0, 1]."""
        if not 0.0 < similarity <= 1.0:
            raise ValueError(f"similarity must be in (0, 1], not {similarity}")
        self._similarity = similarity
        self._index = RMinHashLSH(similarity * 0.8, PERMUTATIONS, _bands(similarity))
        self._keys: dict[frozenset[str], int] = {}
        self._shingles: list[frozenset[str]] = []
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._shingles)

    def add(self, text: str) -> int:
        """Put a text into the index; returns its key: 0, 1, 2 … in order of adding, an older one if it is in."""
        pieces = shingles(text)
        if pieces in self._keys:
            return self._keys[pieces]
        key = self._keys[pieces] = len(self._shingles)
        self._shingles.append(pieces)
        self._index.insert(key, _sketch(pieces))
        return key

    def contains(self, text: str) -> bool:
        """Whether a text in the index is equal to this one or a near-copy of it."""
        pieces = shingles(text)
        return pieces in self._keys or any(self._near(pieces, key) for key in self._index.query(_sketch(pieces)))

    def near(self, text: str) -> list[int]:
        """The keys of all near-copies of this text, sorted."""
        pieces = shingles(text)
        return sorted(key for key in set(self._index.query(_sketch(pieces))) if self._near(pieces, key))

    def _near(self, pieces: frozenset[str], key: int) -> bool:
        return jaccard(pieces, self._shingles[key]) >= self._similarity


def group_near_duplicates(texts: Sequence[str], similarity: float) -> list[int]:
    """The group of each text, named by the position of its first member. Groups are closed: a chain is one group."""
    index = NearDuplicates(similarity=similarity)
    firsts: list[int] = []  # Position of the text that brought in the key.
    keys: list[int] = []
    parents: list[int] = []  # Union-find over keys.
    for position, text in enumerate(texts):
        key = index.add(text)
        keys.append(key)
        if key == len(firsts):
            firsts.append(position)
            parents.append(key)
            for other in index.near(text):
                _join(parents, key, other)
    return [firsts[_root(parents, key)] for key in keys]


def _join(parents: list[int], left: int, right: int) -> None:
    low, high = sorted((_root(parents, left), _root(parents, right)))
    parents[high] = low


def _root(parents: list[int], key: int) -> int:
    while parents[key] != key:
        parents[key] = parents[parents[key]]  # Halve the path, so that long chains stay fast.
        key = parents[key]
    return key


def _sketch(pieces: frozenset[str]) -> RMinHash:
    sketch = RMinHash(PERMUTATIONS, _SEED)
    sketch.update(list(pieces))
    return sketch


def _bands(similarity: float) -> int:
    """The fewest bands (fewest false proposals) that miss a pair of this similarity with probability under 1e-5."""
    for bands in (16, 32, 64):
        if (1.0 - similarity ** (PERMUTATIONS // bands)) ** bands < _MISS:
            return bands
    return PERMUTATIONS
