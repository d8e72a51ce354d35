"""The sentence encoder and its file: a missing model is said, a text is embedded once, no text stays in the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shared.errors import DependencyUnavailable
from shared.model.embedding import _RECORD, DIMENSIONS, CachedEmbedder, SentenceEmbedder, Vectors, _hashes


def test_a_missing_model_is_an_unavailable_dependency(tmp_path: Path) -> None:
    with pytest.raises(DependencyUnavailable, match="embedding model"):
        SentenceEmbedder(tmp_path).embed(["hello"])


def test_nothing_to_embed_needs_no_model(tmp_path: Path) -> None:
    assert SentenceEmbedder(tmp_path).embed([]).shape == (0, 384)


class CountingEmbedder:
    """A text's vector has its length in it."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.texts: list[str] = []
        self._dies_after = dies_after

    def embed(self, texts: Sequence[str]) -> Vectors:
        if self._dies_after is not None and len(self.texts) >= self._dies_after:
            raise KeyboardInterrupt
        self.texts += texts
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        vectors[:, 0] = [len(text) for text in texts]
        return vectors


def ignore(done: int, total: int) -> None:
    """Report nothing."""


def test_a_text_is_embedded_once_in_whatever_order_it_comes_again(tmp_path: Path) -> None:
    model = CountingEmbedder()
    embedder = CachedEmbedder(model, tmp_path / "vectors", ignore)
    first = embedder.embed(["four", "sixsix", "four"])
    again = CachedEmbedder(model, tmp_path / "vectors", ignore).embed(["sixsix", "new", "four"])
    assert first[:, 0].tolist() == [4, 6, 4]
    assert again[:, 0].tolist() == [6, 3, 4]
    assert sorted(model.texts) == ["four", "new", "sixsix"]


def test_a_text_that_is_added_leaves_the_others_known(tmp_path: Path) -> None:
    file, model = tmp_path / "vectors", CountingEmbedder()
    embedder = CachedEmbedder(model, file, ignore)
    embedder.store(["one", "three"])
    embedder.add(["new", "one"])
    assert embedder.embed(["three", "one", "new"])[:, 0].tolist() == [5, 3, 3]
    assert model.texts == ["one", "three", "new"]


def test_the_file_has_no_text_and_only_what_was_used_last(tmp_path: Path) -> None:
    file, model = tmp_path / "vectors", CountingEmbedder()
    CachedEmbedder(model, file, ignore).embed(["a secret of somebody", "another"])
    hashed = bytes(_hashes(["a secret of somebody"])[0])
    assert hashed in file.read_bytes()
    CachedEmbedder(model, file, ignore).embed(["another"])
    assert b"secret" not in file.read_bytes() and hashed not in file.read_bytes()
    assert file.stat().st_size == _RECORD.itemsize
    CachedEmbedder(model, file, ignore).embed(["a secret of somebody"])
    assert model.texts.count("a secret of somebody") == 2


def test_a_file_that_is_deleted_meanwhile_makes_the_work_start_over(tmp_path: Path) -> None:
    file = tmp_path / "vectors"
    embedder = CachedEmbedder(CountingEmbedder(), file, ignore)
    embedder.store(["one", "two"])
    file.unlink()
    with pytest.raises(DependencyUnavailable, match="was deleted meanwhile"):
        embedder.read(["one"])
    embedder.store(["one", "two"])
    assert embedder.read(["two"])[:, 0].tolist() == [3]


def test_stored_texts_are_read_in_any_part_and_order(tmp_path: Path) -> None:
    texts = [f"{number} " + "x" * (number % 7) for number in range(1_300)]
    embedder = CachedEmbedder(CountingEmbedder(), tmp_path / "vectors", ignore)
    embedder.store(texts)
    asked = [texts[1_299], texts[3], texts[700], texts[3]]
    assert embedder.read(asked)[:, 0].tolist() == [len(text) for text in asked]


def test_what_a_killed_process_has_half_written_is_overwritten(tmp_path: Path) -> None:
    file, model = tmp_path / "vectors", CountingEmbedder()
    CachedEmbedder(model, file, ignore).embed(["four"])
    with file.open("ab") as half:
        half.write(b"half a record")
    CachedEmbedder(model, file, ignore).add(["sixsix"])
    assert CachedEmbedder(model, file, ignore).read(["sixsix", "four"])[:, 0].tolist() == [6, 4]
    assert model.texts == ["four", "sixsix"]


def test_a_killed_process_does_not_embed_everything_again(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(2_000)]
    with pytest.raises(KeyboardInterrupt):
        CachedEmbedder(CountingEmbedder(dies_after=1_536), tmp_path / "vectors", ignore).embed(texts)
    model, reported = CountingEmbedder(), []
    vectors = CachedEmbedder(model, tmp_path / "vectors", lambda *of: reported.append(of)).embed(texts)
    assert len(model.texts) == 2_000 - 1_536
    assert vectors[:, 0].tolist() == [len(text) for text in texts]
    assert reported == [(0, 464)]
