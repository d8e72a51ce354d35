"""The cheap rival of the adapter: a bag of character n-grams (TF-IDF) with logistic regression, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.demo.data.rows import DataRow
from schemas.base import Interval
from schemas.datasets import Example
from services.evaluator.statistics.intervals import wilson


def bag_of_words_accuracy(dataset: Path, held_out: Sequence[DataRow]) -> Interval | None:
    """Train on the dataset's train.jsonl and return the accuracy on the held-out rows, with its 95 % interval.

    None if the dataset has fewer than two labels.
    """
    lines = (dataset / "train.jsonl").read_bytes().split(b"\n")
    examples = [Example.model_validate_json(line) for line in lines if line]
    labels = [example.answer for example in examples]
    if len(set(labels)) < 2:
        return None
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    # Of words, characters and both, what does best on few rows with wrong labels among them.
    features = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5))
    model = make_pipeline(features, LogisticRegression(C=10, max_iter=1000))
    model.fit([example.prompt[-1].text for example in examples], labels)
    answers = model.predict([row.text for row in held_out])
    return wilson(sum(answer == row.label for answer, row in zip(answers, held_out, strict=True)), len(held_out))
