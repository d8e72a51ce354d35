"""Sentence embeddings: texts as vectors that are near each other where their meanings are (sentence-transformers).

`CachedEmbedder` keeps them in a file, for work that meets most of its texts again. The file is records of a hash and a
vector. It has no texts, and just those of the last use, so that nothing of a text stays that is used no more.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shared.errors import DependencyUnavailable
from shared.files import replaced_atomically
from shared.processor import has_bfloat16

DIMENSIONS = 384
_BATCH = 32
_AT_ONCE = 512
"""Texts that are embedded together, and then stored."""
_HASH = np.dtype("S16")
_RECORD = np.dtype([("hash", _HASH), ("vector", "<f2", (DIMENSIONS,))])

Vectors = npt.NDArray[np.float32]
HalfVectors = npt.NDArray[np.float16]
Hashes = npt.NDArray[np.bytes_]
Records = npt.NDArray[np.void]
Report = Callable[[int, int], None]
"""Is called with the number of texts that are embedded, and with that of all."""


class Embedder(Protocol):
    def embed(self, texts: Sequence[str]) -> Vectors: ...


class SentenceEmbedder:
    """The sentence encoder all-MiniLM-L6-v2 (384 dimensions), loaded from a folder on first use, on one CPU thread."""

    def __init__(self, folder: Path, *, fast: bool = False) -> None:
        """`fast`: compute in bfloat16 on CPUs that do, three times as fast; its vectors have a cosine over 0.99 to the
        others.
        """
        self._folder = folder
        self._fast = fast
        self._model: Any = None
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [len(texts), 384], rows of length 1. Raises DependencyUnavailable if the model is missing."""
        if not texts:
            return np.empty((0, DIMENSIONS), dtype=np.float32)
        self.load()
        with self._lock:
            rows = self._model.encode(
                list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False,
                convert_to_numpy=True,
            )  # fmt: skip
        return np.asarray(rows, dtype=np.float32)

    def load(self) -> None:
        """Load the model now, not on first use. Raises DependencyUnavailable if it is missing."""
        with self._lock:
            self._model = self._model or self._loaded()

    def unload(self) -> None:
        """Give the model's memory back. It is loaded again on its next use."""
        with self._lock:
            self._model = None
        gc.collect()  # Its modules refer to each other.

    def _loaded(self) -> Any:
        if not (self._folder / "config.json").exists():
            raise DependencyUnavailable(
                f"the embedding model is not in {self._folder}", "Install it: ratchet up downloads what is missing"
            )
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)  # Spinning OpenMP threads of several processes slow each other down twentyfold.
        options = {"dtype": torch.bfloat16} if self._fast and has_bfloat16() else {}
        return SentenceTransformer(str(self._folder), device="cpu", local_files_only=True, model_kwargs=options)


class CachedEmbedder:
    """An embedder that asks another one only for texts that are not in its file."""

    def __init__(self, embedder: Embedder, file: Path, report: Report) -> None:
        self._embedder = embedder
        self._file = file
        self._report = report

    def embed(self, texts: Sequence[str]) -> HalfVectors:
        """Return float16 [len(texts), 384], rows of length 1: `store` and `read`."""
        self.store(texts)
        return self.read(texts)

    def store(self, texts: Sequence[str]) -> None:
        """Make the file have the vectors of just these texts. Raises as `add` does."""
        asked = _hashes(texts)
        if not np.isin(self._known(), asked).all():
            with replaced_atomically(self._file) as file:
                for block in self._blocks():
                    file.write(block[np.isin(block["hash"], asked)].tobytes())
        self.add(texts)

    def add(self, texts: Sequence[str]) -> None:
        """Make the file have the vectors of these texts, too. Raises DependencyUnavailable if the model is missing.

        What a killed process has embedded is kept. Texts of one length need no padding, so the shortest come first.
        """
        known, asked = self._known(), _hashes(texts)
        missing = sorted({texts[row] for row in np.flatnonzero(~np.isin(asked, known)).tolist()}, key=len)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as file:
            file.truncate(len(known) * _RECORD.itemsize)  # A killed process may have left a part of one.
            for start in range(0, len(missing), _AT_ONCE):
                self._report(start, len(missing))
                part = missing[start : start + _AT_ONCE]
                records = np.zeros(len(part), _RECORD)
                records["hash"], records["vector"] = _hashes(part), self._embedder.embed(part)
                file.write(records.tobytes())

    def read(self, texts: Sequence[str]) -> HalfVectors:
        """Return float16 [len(texts), 384] of texts that are stored: of a large task's all are 80 MB.

        Raises DependencyUnavailable where one is not: the file was deleted meanwhile, as for a person who was
        forgotten.
        """
        known, asked = self._known(), _hashes(texts)
        if not np.isin(asked, known).all():
            raise DependencyUnavailable(f"{self._file.name}, vectors of texts, was deleted meanwhile")
        by_hash = np.argsort(known, kind="stable")
        places = by_hash[np.searchsorted(known, asked, sorter=by_hash)]
        rows, start = np.argsort(places, kind="stable"), 0
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float16)
        for block in self._blocks():
            first, last = np.searchsorted(places, (start, start + len(block)), sorter=rows)
            vectors[rows[first:last]] = block["vector"][places[rows[first:last]] - start]
            start += len(block)
        return vectors

    def _known(self) -> Hashes:
        return np.concatenate([np.array([], _HASH), *(block["hash"].copy() for block in self._blocks())])

    def _blocks(self) -> Iterator[Records]:
        """Yield the file's records part by part: all of a large task would be 80 MB."""
        with suppress(FileNotFoundError), self._file.open("rb") as file:
            while data := file.read(_AT_ONCE * _RECORD.itemsize):
                yield np.frombuffer(data, _RECORD, len(data) // _RECORD.itemsize)


def _hashes(texts: Iterable[str]) -> Hashes:
    """Return a hash of 16 bytes of each text. As a dictionary those of a large task's texts would have 15 MB."""
    found = (blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH.itemsize).digest() for text in texts)
    return np.array(list(found), dtype=_HASH)
