"""The speed of a machine is measured once a job, and its energy counted where it can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from services.trainer.recipe import resources
from services.trainer.recipe.resources import EnergyMeter, measure_speed, product_speed
from tests.unit.trainer.test_cost import SHAPE

TYPE = torch.float32


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """A machine of eight cores whose speed depends on the number of threads."""

    def with_speeds(flops: dict[int, float]) -> None:
        monkeypatch.setattr("os.cpu_count", lambda: 8)
        monkeypatch.setattr(resources, "product_speed", lambda _shape, _dtype, threads: flops[threads])

    return with_speeds


@pytest.mark.parametrize(
    ("flops", "fastest"),
    [
        ({1: 1e9, 7: 6e9, 8: 2e9}, 7),
        ({1: 1e9, 7: 6e9, 8: 7e9}, 8),
        ({1: 1e9, 7: 6e9, 8: 6.1e9}, 7),
        ({1: 9e9, 7: 1e9, 8: 1e9}, 1),
    ],
)  # fmt: skip
def test_the_fastest_number_of_threads_is_set_and_one_that_is_hardly_faster_is_not(
    machine: Callable[[dict[int, float]], None], tmp_path: Path, flops: dict[int, float], fastest: int
) -> None:
    machine(flops)
    assert measure_speed(tmp_path, SHAPE, TYPE) == (fastest, flops[fastest])
    assert torch.get_num_threads() == fastest


def test_threads_that_are_set_are_measured_alone(machine: Callable[[dict[int, float]], None], tmp_path: Path) -> None:
    machine({3: 5e9})
    assert measure_speed(tmp_path, SHAPE, TYPE, threads=3) == (3, 5e9)


def test_a_resumed_job_has_the_threads_it_had(machine: Callable[[dict[int, float]], None], tmp_path: Path) -> None:
    machine({1: 1e9, 7: 6e9, 8: 2e9})
    first = measure_speed(tmp_path, SHAPE, TYPE)
    machine({1: 9e9, 7: 1e9, 8: 1e9})  # Now another program computes.
    torch.set_num_threads(1)
    assert measure_speed(tmp_path, SHAPE, TYPE) == first
    assert torch.get_num_threads() == 7


def test_speed_is_that_of_a_product_of_matrices() -> None:
    assert 1e7 < product_speed(SHAPE, TYPE, 1) < 1e13


def zone(powercap: Path, name: str, microjoules: int, limit: int = 1_000_000_000) -> None:
    (powercap / name).mkdir(exist_ok=True)
    (powercap / name / "energy_uj").write_text(f"{microjoules}\n")
    (powercap / name / "max_energy_range_uj").write_text(f"{limit}\n")


def test_energy_is_summed_over_processors_also_where_a_counter_starts_over(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 999_000_000)
    zone(tmp_path, "intel-rapl:1", 1_000_000)
    zone(tmp_path, "intel-rapl:0:0", 5)  # A part of the first, which has it already.
    meter = EnergyMeter(tmp_path)
    assert meter.joules() == 0.0
    zone(tmp_path, "intel-rapl:0", 4_000_000)
    zone(tmp_path, "intel-rapl:1", 3_000_000)
    zone(tmp_path, "intel-rapl:0:0", 900_000_000)
    assert meter.joules() == pytest.approx(5 + 2)
    zone(tmp_path, "intel-rapl:1", 3_500_000)
    assert meter.joules() == pytest.approx(7.5)


def test_energy_is_unknown_where_nothing_tells_it(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None
