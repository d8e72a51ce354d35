"""The noise model on vectors of known classes: wrong labels are found, right ones are left alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from services.dataset_builder.checks.label_noise import LabelledText, LabelScore, LabelsToScore
from services.dataset_builder.recipe import LabelScorer

CLASSES = ("address", "billing", "cancel", "delivery")


class Blobs:
    """Embeddings: a text is `class number`, its vector near the class's axis. Neighbouring classes overlap."""

    def store(self, texts: Sequence[str]) -> None:
        self.stored, self.most_read = set(texts), 0

    def read(self, texts: Sequence[str]) -> npt.NDArray[np.float16]:
        assert self.stored.issuperset(texts)
        self.most_read = max(self.most_read, len(texts))
        rows = []
        for text in texts:
            about, number = text.split()
            chance = np.random.default_rng(int(number))
            centre = np.zeros(384)
            centre[CLASSES.index(about)], centre[(CLASSES.index(about) + 1) % 4] = 1.0, 0.3
            rows.append(centre + chance.normal(0.0, 0.025, 384))
        vectors = np.array(rows)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def labelled(start: int, count: int, wrong: float) -> tuple[list[LabelledText], list[bool]]:
    chance = np.random.default_rng(start)
    rows, is_wrong = [], []
    for number in range(start, start + count):
        about = number % 4
        mistaken = bool(chance.random() < wrong)
        label = CLASSES[(about + int(chance.integers(1, 4))) % 4] if mistaken else CLASSES[about]
        rows.append(LabelledText(f"{CLASSES[about]} {number}", label))
        is_wrong.append(mistaken)
    return rows, is_wrong


def quality(scores: Sequence[LabelScore], is_wrong: Sequence[bool]) -> tuple[float, float]:
    """Recall and precision of the suspicious ones."""
    found = sum(score.is_suspicious and wrong for score, wrong in zip(scores, is_wrong, strict=True))
    return found / max(1, sum(is_wrong)), found / max(1, sum(score.is_suspicious for score in scores))


def test_wrong_labels_are_found_among_the_rows_it_learns_from_and_among_others() -> None:
    learned, wrong_inside = labelled(0, 400, wrong=0.15)
    others, wrong_outside = labelled(10_000, 2_500, wrong=0.15)
    scores = list(LabelScorer(Blobs())(LabelsToScore(learned, others)))
    assert len(scores) == 2_900
    for part, is_wrong in ((scores[:400], wrong_inside), (scores[400:], wrong_outside)):
        recall, precision = quality(part, is_wrong)
        assert recall >= 0.9
        assert precision >= 0.9
    assert {score.is_issue for score in scores[400:]} == {None}
    assert sum(bool(score.is_issue) for score in scores[:400]) == pytest.approx(sum(wrong_inside), rel=0.2)


def test_vectors_of_others_are_read_in_parts_which_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, _ = labelled(0, 200, wrong=0.1)
    others, _ = labelled(10_000, 501, wrong=0.1)
    whole = list(LabelScorer(Blobs())(LabelsToScore(learned, others)))
    monkeypatch.setattr("services.dataset_builder.recipe._READ", 100)
    vectors = Blobs()
    assert list(LabelScorer(vectors)(LabelsToScore(learned, others))) == whole
    assert len(whole) == 701
    assert vectors.most_read == 200, "what it learns from"


def test_clean_labels_are_left_alone_and_each_row_is_scored_by_models_that_have_not_seen_it() -> None:
    clean, _ = labelled(0, 400, wrong=0.0)
    assert sum(score.is_suspicious for score in LabelScorer(Blobs())(LabelsToScore(clean))) <= 4
    chance = np.random.default_rng(20)
    shuffled = [LabelledText(row.text, str(chance.choice(CLASSES))) for row in clean]
    right = sum(score.given > score.rival_probability for score in LabelScorer(Blobs())(LabelsToScore(shuffled)))
    assert right < 160, "a model that had seen its row would know the label by heart; chance knows 100"


def test_the_same_rows_have_the_same_scores_and_a_label_of_five_rows_is_enough() -> None:
    learned, _ = labelled(0, 100, wrong=0.1)
    rare = [LabelledText(f"address {n}", "rare") for n in range(1_000, 1_005)]
    first = list(LabelScorer(Blobs())(LabelsToScore([*learned, *rare])))
    assert first == list(LabelScorer(Blobs())(LabelsToScore([*learned, *rare])))
    assert all(0.0 <= score.given <= 1.0 and score.rival for score in first)
