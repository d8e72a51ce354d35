"""Each service runs with what its extra installs, and no more: no torch in the image of the gateway.

All extras are installed where the tests run, so the import is tried with everything else hidden: a package outside
the extra's closure of requirements cannot be found.
"""

from __future__ import annotations

import importlib.metadata as metadata
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from schemas.catalog import SERVICES

PROJECT = "ratchet-loop"
WITHOUT_TORCH = ("gateway", "prediction_log", "console", "dataset_builder", "shadow", "deployer", "scheduler")

IMPORT_WITH_THE_REST_HIDDEN = """
import importlib.abc, json, sys
hidden = set(json.loads(sys.stdin.read()))
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is not in the extra", name=name)
sys.meta_path.insert(0, Hidden())
import importlib
importlib.import_module(f"services.{sys.argv[1]}.main").build()
"""


def requirements(distribution: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for text in metadata.requires(distribution) or []:
        requirement = Requirement(text)
        wanted = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker is None or any(requirement.marker.evaluate(environment) for environment in wanted):
            yield requirement


def closure(extra: str) -> set[str]:
    """Names of all distributions that `pip install ratchet-loop[extra]` brings."""
    found: set[tuple[str, frozenset[str]]] = set()
    todo = [(PROJECT, frozenset({extra.replace("_", "-")}))]
    while todo:
        place = todo.pop()
        if place in found:
            continue
        found.add(place)
        try:
            needs = list(requirements(*place))
        except metadata.PackageNotFoundError:
            continue  # For another platform.
        todo += [(canonicalize_name(need.name), frozenset(need.extras)) for need in needs]
    return {name for name, _ in found}


def hidden_modules(extra: str) -> list[str]:
    allowed = closure(extra)
    return sorted(
        module
        for module, distributions in metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in distributions} & allowed
    )


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_needs_nothing_but_its_extra(service: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_WITH_THE_REST_HIDDEN, service],
        input=json.dumps(hidden_modules(service)),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2_000:]


@pytest.mark.parametrize("service", WITHOUT_TORCH)
def test_no_torch_where_nothing_is_computed(service: str) -> None:
    assert {"torch", "transformers", "sentence-transformers"} & closure(service) == set()
    assert "torch" in hidden_modules(service)
