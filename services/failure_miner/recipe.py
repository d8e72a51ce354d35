"""Turns vectors into clusters (HDBSCAN). Runs in threads.

The recipe was chosen on Banking77 and CLINC150: 50 principal components and the leaves of the cluster tree gave the
purest clusters; `eom` can collapse to three clusters, and raw vectors are slower and noisier.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.failure_miner.domain import Vectors

_COMPONENTS = 50


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
