"""Sentence embeddings: texts as vectors that are near each other where their meanings are (sentence-transformers).

`CachedEmbedder` keeps them in a file, for work that meets most of its texts again. The file has hashes and vectors, no
texts, and just those of the last use, so that nothing of a text stays that is used no more.
"""

from __future__ import annotations

import gc
import logging
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
_SAVED_EVERY = 10_000
_HASH_BYTES = 16
_HASH = np.dtype(f"S{_HASH_BYTES}")
_ROUNDING = 1e-12
_HALF_FLOAT = "<f2"

Vectors = npt.NDArray[np.float32]
HalfVectors = npt.NDArray[np.float16]
Hashes = npt.NDArray[np.bytes_]
Places = npt.NDArray[np.int64]
Report = Callable[[int, int], None]
"""Is called with the number of texts that are embedded, and with that of all."""

logger = logging.getLogger(__name__)


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

    def embed_tokens(self, texts: Sequence[str]) -> list[Vectors]:
        """Return float32 [tokens, 384] of each text, rows of length 1, without the marks of its start and end.

        A text is cut at the encoder's 256 tokens. Raises as `embed` does.
        """
        if not texts:
            return []
        self.load()
        with self._lock:
            found = self._model.encode(
                list(texts), batch_size=_BATCH, output_value="token_embeddings", show_progress_bar=False,
            )  # fmt: skip
        rows = [np.asarray(each.float().cpu(), dtype=np.float32)[1:-1] for each in found]
        return [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), _ROUNDING) for each in rows]

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

    def embed(self, texts: Sequence[str], keep: Iterable[str] = ()) -> HalfVectors:
        """Return float16 [len(texts), 384], rows of length 1: `store` and `read`."""
        self.store(texts, keep)
        return self.read(texts)

    def store(self, texts: Sequence[str], keep: Iterable[str] | None = ()) -> None:
        """Make the file have the vectors of just these texts, and those of the texts to `keep` that it has; None: all.

        What a killed process has embedded is kept, in parts. Raises DependencyUnavailable if the model is missing.
        """
        known, asked = self._checked_hashes(), _hashes(texts)
        kept = np.ones(len(known), dtype=bool)
        if keep is not None:
            kept = np.isin(known, np.concatenate([asked, _hashes(keep)]))
        missing = _missing(texts, asked, known)
        if missing or not kept.all():
            self._embed_missing(missing, known[kept], np.flatnonzero(kept))

    def read(self, texts: Sequence[str]) -> HalfVectors:
        """Return float16 [len(texts), 384] of texts that are stored: of a large task's all are 80 MB.

        Raises KeyError for a text that is not, DependencyUnavailable if the file was deleted since they were stored.
        """
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float16)
        if not texts:
            return vectors
        with self._opened() as archive:
            places = _places_of(_hashes(texts), _hashes_in(archive))
            rows = np.argsort(places, kind="stable")
            done = 0
            for part in _vectors_at(archive, places[rows]):
                vectors[rows[done : done + len(part)]] = part
                done += len(part)
        return vectors

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            archive = zipfile.ZipFile(self._file)
        except FileNotFoundError as error:  # As for a person who was forgotten.
            raise DependencyUnavailable(f"{self._file.name}, vectors of texts, was deleted meanwhile") from error
        with archive:
            yield archive

    def _embed_missing(self, texts: Sequence[str], hashes: Hashes, places: Places) -> None:
        """Replace the file by one with what is at these places, whose hashes these are, and with these texts."""
        new: list[tuple[Hashes, HalfVectors]] = []
        for start in range(0, len(texts), _AT_ONCE):
            self._report(start, len(texts))
            part = texts[start : start + _AT_ONCE]
            new.append((_hashes(part), self._embedder.embed(part).astype(np.float16)))
            if _AT_ONCE * len(new) >= _SAVED_EVERY:
                hashes, new = self._write(hashes, places, new), []
                places = np.arange(len(hashes))
        if new or not texts:
            self._write(hashes, places, new)

    def _checked_hashes(self) -> Hashes:
        """Return the hashes of the file's vectors, in their order; none if it is broken."""
        try:
            with zipfile.ZipFile(self._file) as archive:
                if (broken := archive.testzip()) is not None:
                    raise ValueError(f"{broken} is broken")
                return _hashes_in(archive)
        except FileNotFoundError:
            return _hashes(())
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("%s is no file of embeddings, they are made anew: %s", self._file, error)
            return _hashes(())

    def _write(self, hashes: Hashes, places: Places, new: Sequence[tuple[Hashes, HalfVectors]]) -> Hashes:
        """Replace the file by one with what is at these places, which ascend, and what is new; returns its hashes."""
        hashes = np.concatenate([hashes, *(found for found, _ in new)])
        with replaced_atomically(self._file) as file, zipfile.ZipFile(file, "w") as archive:
            with archive.open("hashes.npy", "w") as member:
                np.lib.format.write_array(member, hashes.view(np.uint8), allow_pickle=False)
            with archive.open("vectors.npy", "w", force_zip64=True) as member:
                header = {"descr": _HALF_FLOAT, "fortran_order": False, "shape": (len(hashes), DIMENSIONS)}
                np.lib.format.write_array_header_1_0(member, header)
                if len(places):
                    with self._opened() as old:
                        for part in _vectors_at(old, places):
                            member.write(part.tobytes())
                for _, vectors in new:
                    member.write(vectors.tobytes())
        return hashes


def _missing(texts: Sequence[str], asked: Hashes, known: Hashes) -> list[str]:
    """Return the texts whose hash is not known, each once, the shortest first: texts of one length need no padding."""
    new = np.flatnonzero(np.isin(asked, known, invert=True))
    first = np.sort(np.unique(asked[new], return_index=True)[1])
    return sorted((texts[row] for row in new[first]), key=len)


def _hashes(texts: Iterable[str]) -> Hashes:
    """Return a hash of 16 bytes of each text. As a dictionary those of a large task's texts would have 15 MB."""
    return np.array([_hash(text) for text in texts], dtype=_HASH)


def _hashes_in(archive: zipfile.ZipFile) -> Hashes:
    with archive.open("hashes.npy") as member:
        packed: Hashes = np.lib.format.read_array(member, allow_pickle=False).view(_HASH)
        return packed


def _places_of(asked: Hashes, known: Hashes) -> Places:
    """Return where each hash is among those that are known. Raises KeyError if one is not there."""
    if not np.isin(asked, known).all():
        raise KeyError("a text whose embedding is not in the file")
    order = np.argsort(known, kind="stable")
    places: Places = order[np.searchsorted(known, asked, sorter=order)]
    return places


def _vectors_at(archive: zipfile.ZipFile, places: Places) -> Iterator[HalfVectors]:
    """Yield the vectors at these places, which ascend, part by part: all of a large task would be 80 MB."""
    with archive.open("vectors.npy") as member:
        np.lib.format.read_magic(member)
        (count, dimensions), _, dtype = np.lib.format.read_array_header_1_0(member)
        for start in range(0, count, _AT_ONCE):
            rows = min(_AT_ONCE, count - start)
            block = np.frombuffer(member.read(rows * dimensions * dtype.itemsize), dtype).reshape(rows, DIMENSIONS)
            first, last = np.searchsorted(places, (start, start + rows))
            yield block[places[first:last] - start]


def _hash(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
