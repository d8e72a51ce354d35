"""The benchmark of twelve weeks puts its own encoder into a build's models: it must be one that they can use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from services.dataset_builder.checks.label_noise import LabelledText, LabelsToScore
from services.dataset_builder.model_process import LocalModels
from tests.benchmarks.twelve_weeks.product import EmbeddedTexts


def test_a_build_embeds_and_scores_with_the_vectors_of_the_corpus(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(40)]
    corpus = SimpleNamespace(vectors=np.eye(40, 384, dtype=np.float32), index={text: n for n, text in enumerate(texts)})
    models = LocalModels(b"k" * 32, tmp_path, tmp_path / "embeddings.npz", tmp_path)
    vars(models)["_encoder"] = EmbeddedTexts(cast("Any", corpus))
    models.load_scorer()
    models.embed(texts)
    rows = [LabelledText(text, "ab"[number % 2]) for number, text in enumerate(texts)]
    assert len(list(models.score(LabelsToScore(rows)))) == 40
