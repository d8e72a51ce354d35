"""Clustering is deterministic, makes no clusters of too few rows, and finds groups that are known."""

from __future__ import annotations

import numpy as np

from services.failure_miner.recipe import cluster


def blobs(sizes: tuple[int, ...], spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(20)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    centres = np.eye(384, dtype=np.float32)[: len(sizes)]
    rows = centres[truth] + chance.normal(0, spread / 4, (len(truth), 384)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), truth


def test_known_groups_are_found() -> None:
    rows, truth = blobs((30, 20, 15))
    labels = cluster(rows, min_cluster_size=8, min_samples=2)
    assert len(set(labels) - {-1}) >= 3
    for label in set(labels) - {-1}:
        assert len(set(truth[labels == label])) == 1


def test_the_same_vectors_give_the_same_clusters() -> None:
    rows, _ = blobs((20, 20))
    assert (cluster(rows, 8, 2) == cluster(rows, 8, 2)).all()


def test_fewer_suspects_than_two_clusters_need_are_all_noise() -> None:
    rows, _ = blobs((7, 8))
    assert set(cluster(rows, min_cluster_size=8, min_samples=2)) == {-1}
    assert len(cluster(rows[:0], 8, 2)) == 0


def test_identical_vectors_are_clustered_without_an_error() -> None:
    rows = np.repeat(np.eye(384, dtype=np.float32)[:1], 40, axis=0)
    assert len(cluster(rows, 8, 2)) == 40
