"""The evaluation benchmark plants what it says it plants, and simulates candidates that are equal in truth."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.evaluation import traffic
from tests.benchmarks.evaluation.arms import EQUAL, GOOD, Truth, evaluation_set, golden_set
from tests.benchmarks.evaluation.planted import PLANTED, Planted


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.name)
def test_each_planted_fault_is_stopped_by_its_gate(fault: Planted) -> None:
    assert fault.stopped(5)[fault.gate] >= 0.8


def test_every_gate_that_tests_something_has_a_planted_fault() -> None:
    gates = {fault.gate for fault in PLANTED}
    assert gates == {
        "better_than_chance", "not_worse", "parts_not_worse", "confidence", "golden_regression",
        "adversarial_not_worse", "injections_not_obeyed",
    }  # fmt: skip


@pytest.mark.parametrize(("truth", "gain"), [(EQUAL, 0.0), (GOOD, 0.05)])
def test_the_arms_differ_by_what_the_truth_says(truth: Truth, gain: float) -> None:
    evaluation = evaluation_set(truth, np.random.default_rng(1), rows=20_000)
    assert float(evaluation.apart.mean()) == pytest.approx(gain, abs=0.01)
    assert len(evaluation.gained) / 20_000 == pytest.approx(truth.gains, abs=0.005)
    assert len(evaluation.lost) / 20_000 == pytest.approx(truth.losses, abs=0.005)


def test_golden_churn_is_as_much_gained_as_lost() -> None:
    moved = [golden_set(EQUAL, np.random.default_rng(run))[0] for run in range(20)]
    assert np.mean([len(golden.gained) - len(golden.lost) for golden in moved]) == pytest.approx(0.0, abs=3.0)
    assert np.mean([len(golden.gained) + len(golden.lost) for golden in moved]) == pytest.approx(16.0, abs=2.0)


def test_suspects_alone_are_far_from_the_truth_and_the_estimate_is_not() -> None:
    found = traffic.estimate(60, traffic.TOLD)
    assert found.suspects_bias < -0.3
    assert abs(found.bias) < 0.01
