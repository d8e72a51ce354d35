"""Turns sentences into vectors (sentence-transformers) and vectors into clusters (HDBSCAN). Runs in threads.

The recipe was chosen on Banking77 and CLINC150: 50 principal components and the leaves of the cluster tree gave the
purest clusters; `eom` can collapse to three clusters, and raw vectors are slower and noisier.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.failure_miner.domain import Vectors
from shared.errors import DependencyUnavailable

DIMENSIONS = 384
_COMPONENTS = 50
_BATCH = 32


class SentenceEmbedder:
    """The sentence encoder all-MiniLM-L6-v2 (384 dimensions), loaded from a folder on first use, on one CPU thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model: Any = None
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [len(texts), 384], rows of length 1. Raises DependencyUnavailable if the model is missing."""
        if not texts:
            return np.empty((0, DIMENSIONS), dtype=np.float32)
        with self._lock:
            model = self._model = self._model or self._load()
            rows = model.encode(
                list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False,
                convert_to_numpy=True,
            )  # fmt: skip
        return np.asarray(rows, dtype=np.float32)

    def _load(self) -> Any:
        if not (self._folder / "config.json").exists():
            raise DependencyUnavailable(
                f"the embedding model is not in {self._folder}", "Install it: ratchet up downloads what is missing"
            )
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)  # Spinning OpenMP threads of several processes slow each other down twentyfold.
        return SentenceTransformer(str(self._folder), device="cpu", local_files_only=True)


def cluster(embeddings: Vectors, min_cluster_size: int, min_samples: int) -> npt.NDArray[np.int64]:
    """Return the cluster of each row, 0, 1, …; -1 is noise. Too few rows for two clusters: all noise. Deterministic."""
    if len(embeddings) < 2 * min_cluster_size:
        return np.full(len(embeddings), -1, dtype=np.int64)
    from hdbscan import HDBSCAN
    from sklearn.decomposition import PCA

    components = min(_COMPONENTS, *embeddings.shape)
    with np.errstate(invalid="ignore"):  # With identical rows the variance ratio, which is unused, is 0/0.
        reduced = PCA(n_components=components, svd_solver="full").fit_transform(embeddings.astype(np.float64))
    clusters = HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=min_samples,
        cluster_selection_method="leaf",
        core_dist_n_jobs=1,
    ).fit_predict(reduced)
    return np.asarray(clusters, dtype=np.int64)
