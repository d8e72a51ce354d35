"""What `make chaos` and `make bench` run is too long for CI: here it is imported, with the settings that it makes."""

import importlib
import pkgutil

import pytest

import tests.benchmarks
import tests.chaos

MODULES = [
    module.name
    for package in (tests.benchmarks, tests.chaos)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("module", MODULES)
def test_a_long_run_can_be_imported(module: str) -> None:
    importlib.import_module(module)
