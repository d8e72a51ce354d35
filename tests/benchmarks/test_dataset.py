"""Each part of the data set benchmark runs with small numbers, and parts alone write nothing."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import typer

from shared.model.embedding import DIMENSIONS, HalfVectors
from tests.benchmarks import dataset
from tests.benchmarks.banking77 import BANKING77, banking77
from tests.benchmarks.dataset import authors, held_out, learning, noise, sessions
from tests.benchmarks.dataset.embedded import Banking77
from tests.benchmarks.table import Measured

needs_banking77 = pytest.mark.skipif(not BANKING77.exists(), reason="Banking77 is not there")


@pytest.fixture(scope="module")
def questions() -> Banking77:
    """Vectors that tell each intent by a direction of its own."""
    return Banking77(*map(made_vectors, ("train", "test")), intents=5)


def made_vectors(part: str) -> HalfVectors:
    rows, chance = banking77(part), np.random.default_rng(20)
    numbers = {label: number for number, label in enumerate(sorted({label for _, label in rows}))}
    vectors = np.eye(DIMENSIONS)[[numbers[label] for _, label in rows]] + chance.normal(
        0, 0.05, (len(rows), DIMENSIONS)
    )
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def missed(measured: list[Measured]) -> list[str]:
    assert measured
    return [figure.name for figure in measured if figure.missed]


def test_turns_do_not_leak() -> None:
    measured, (grid,) = sessions.measure(conversations=20)
    assert (missed(measured), len(grid.rows)) == ([], 6)


def test_edits_of_many_are_trained_on_and_one_author_floods_nothing() -> None:
    assert missed(authors.measure()[0]) == []


def test_held_out_rows_are_measured_over_two_processes() -> None:
    measured, _ = held_out.measure(runs=2)
    assert [figure.value for figure in measured if "stopped" in figure.name] == [1.0, 1.0]


@needs_banking77
def test_training_on_a_build_is_compared_with_training_on_all(
    questions: Banking77, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "FEW", 5)
    monkeypatch.setattr(learning, "INTENTS", 4)
    measured, (grid,) = learning.measure(questions, audits=200, seeds=1)
    assert (missed(measured), len(grid.rows)) == ([], 6)


@needs_banking77
def test_planted_noise_is_found(questions: Banking77) -> None:
    measured, _ = noise.measure(questions, seeds=1)
    assert [figure.value > 0.8 for figure in measured if figure.name.endswith("found")] == [True, True]


def test_parts_alone_are_printed_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(measure=lambda: ([], [])))
    monkeypatch.setattr(dataset, "report", lambda *given, write: written.append(write))
    dataset.main(["authors", "sessions"])
    dataset.main()
    assert written == [False, True]
    with pytest.raises(typer.BadParameter, match="choose from builds, sessions"):
        dataset.main(["nothing"])
