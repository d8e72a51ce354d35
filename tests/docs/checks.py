"""What is wrong with a block of documentation, found without running it."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deploy.devstack.config import PORTS
from deploy.variables import settings_fields, unknown_variables
from services.scheduler.golden.file import GoldenLine
from services.scheduler.task_files import read_task
from shared.errors import ConfigurationError
from shared.model.prices import SHIPPED, PriceList
from tests.benchmarks.__main__ import NAMES
from tests.conftest import ROOT
from tests.docs.blocks import Block, Command, read_commands
from tests.docs.commands import command_fault
from tests.mutants.catalog import Fault

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SERVICES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "services").rglob("*.py"))
TASKS = sorted((ROOT / "deploy" / "tasks").glob("*.yaml"))
FIELDS = {f"RATCHET_{name.upper()}": info for _, _, fields in settings_fields() for name, info in fields.items()}
PATHS = {
    "gateway": re.compile(r"/v1/(chat/completions|models(/[\w-]+)?|predictions|feedback|traces)"),
    "vllm": re.compile(r"/v1/(chat/completions|models)"),
    "models": re.compile(r"/v1/(chat/completions|models)"),
}
"""The paths that pages name of each service. Clients add their own to the address; running a block tries those."""
ADDRESS = re.compile(r"(?:http://|\s)(?:127\.0\.0\.1|localhost):(\d+)(/[\w/{}.-]*)?")
OTHERS = {"cat", "tensorboard", "vllm"}
"""Programs whose arguments are not checked."""


def faults(block: Block, before: str = "") -> list[str]:
    """What is wrong with a block, in words. `before`: the page's blocks of Python that precede it."""
    if block.language == "python":
        found = _python_faults(block.text, before)
    elif (check := _CHECKS.get(block.language)) is not None:
        found = check(block.text)
    else:
        return [f"a block in {block.language or 'no language'}: say sh, python, yaml, json, toml or text"]
    return [*found, *_address_faults(block.text)]


def _address_faults(text: str) -> Iterator[str]:
    names = {str(port): name for name, port in PORTS.items()}
    for port, path in ADDRESS.findall(text):
        if (name := names.get(port)) is None:
            yield f"nothing listens on port {port}"
        elif (
            path.strip("/") not in ("", "v1")
            and "{" not in path
            and not (name in PATHS and PATHS[name].fullmatch(path))
        ):
            yield f"{name} has no {path}"


def _shell_faults(text: str) -> Iterator[str]:
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if checked.returncode:
        yield checked.stderr.strip()
        return
    for command in read_commands(text):
        yield from unknown_variables(command.variables)
        for name, value in command.variables.items():
            if name in FIELDS and "..." not in value and (fault := _value_fault(name, value)):
                yield fault
        if command.words:
            yield from _command_faults(command)


def _value_fault(name: str, value: str) -> str | None:
    info = FIELDS[name]
    try:
        TypeAdapter(Annotated[info.annotation, info]).validate_python(value)
    except ValidationError as error:
        return f"{name}={value}: {error.errors()[0]['msg']}"
    return None


def _command_faults(command: Command) -> Iterator[str]:
    name, *words = command.words
    if name == "ratchet":
        if fault := command_fault(words):
            yield f"ratchet {shlex.join(words)}: {fault}"
    elif name == "make":
        yield from _make_faults(words)
    elif name == "pip":
        yield from _pip_faults(words)
    elif name.startswith("python"):
        yield from _module_faults(words)
    elif name in ("pytest", "cp"):
        yield from (
            f"there is no {word}" for word in words[: 1 if name == "cp" else None] if not (ROOT / word).exists()
        )
    elif name == "curl":
        body = words[words.index("-d") + 1] if "-d" in words else "{}"
        yield from _json_faults(body, lambda line: None)
    elif name not in OTHERS:
        yield f"there is no command {name}"


def _make_faults(words: list[str]) -> Iterator[str]:
    for word in words:
        variable, is_set, value = word.partition("=")
        if is_set and f"$({variable})" not in MAKEFILE:
            yield f"make reads no variable {variable}"
        elif is_set and words[0] in ("loop", "up") and (fault := command_fault([words[0], *shlex.split(value)])):
            yield f"make {words[0]} {word}: {fault}"
        elif not is_set and not re.search(rf"^{re.escape(word)}:.* ## ", MAKEFILE, re.MULTILINE):
            yield f"make has no target {word}"


def _pip_faults(words: list[str]) -> Iterator[str]:
    if words[:1] != ["install"]:
        yield f"pip {shlex.join(words)}: only `install` is known"
    for word in words[1:]:
        path, _, extras = word.partition("[")
        if path.startswith((".", "constraints")) and not (ROOT / path).exists():
            yield f"there is no {path}"
        known = PROJECT["optional-dependencies"] if path in (".", PROJECT["name"]) else {}
        yield from (f"there is no extra {name}" for name in extras.strip("]").split(",") if name and name not in known)


def _module_faults(words: list[str]) -> Iterator[str]:
    if words[:1] != ["-m"] or importlib.util.find_spec(words[1]) is None:
        yield f"python {shlex.join(words)}: no such module"
    elif words[1] == "tests.benchmarks":
        yield from (f"there is no benchmark {name}" for name in words[2:3] if name not in NAMES)
    elif words[1] == "deploy.runner" and not (ROOT / "services" / words[2]).is_dir():
        yield f"there is no service {words[2]}"


def _python_faults(text: str, before: str) -> Iterator[str]:
    """Imports are made, classes that a name is given to are made objects of, and attributes are looked up."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"line {error.lineno}: {error.msg}"
        return
    names: dict[str, Any] = {}
    for node in [*ast.parse(before).body, *tree.body]:
        is_made = isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        try:
            if isinstance(node, ast.Import | ast.ImportFrom) or (
                is_made and isinstance(_value_of(node.value.func, names), type)
            ):
                exec(compile(ast.Module([node], []), "docs", "exec"), names)
        except Exception as error:  # noqa: BLE001 - whatever an import or a constructor raises is the finding
            yield f"{ast.unparse(node)}: {error}"
    for inner in ast.walk(tree):
        try:
            called = _value_of(inner.func if isinstance(inner, ast.Call) else inner, names)
            if isinstance(inner, ast.Call) and called is not None:
                keywords = {keyword.arg: None for keyword in inner.keywords if keyword.arg}
                inspect.signature(called).bind(*inner.args, **keywords)
        except (AttributeError, TypeError) as error:
            yield f"{ast.unparse(inner)}: {error}"


def _value_of(node: ast.AST, names: dict[str, Any]) -> Any:
    """The value of a name or an attribute of one; None if it is known only when the block runs."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _value_of(node.value, names)) is not None:
        return getattr(owner, node.attr)
    return None


def _yaml_faults(text: str) -> Iterator[str]:
    """Alert rules, a list of prices, or a part of a task, which some shipped task must take in the place of its own."""
    try:
        found = _read(text)
        if "groups" in found:
            yield from _alert_faults(found)
        elif "models" in found:
            PriceList.model_validate({**_read(SHIPPED.read_text(encoding="utf-8")), **found})
        elif all(problems := [_task_fault({**_read(task.read_text(encoding="utf-8")), **found}) for task in TASKS]):
            yield str(problems[0])
    except (YAMLError, ValidationError) as error:
        yield str(error)


def _read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _task_fault(task: Any) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "task.yaml").write_text(json.dumps(task, default=str), encoding="utf-8")
        try:
            read_task(file)
        except ConfigurationError as error:
            return str(error)
    return None


def _alert_faults(found: Any) -> Iterator[str]:
    for rule in (rule for group in found["groups"] for rule in group["rules"]):
        if unknown := rule.keys() - {"alert", "expr", "for", "labels", "annotations"}:
            yield f"Prometheus knows no {sorted(unknown)} in a rule"
        for metric in re.findall(r"ratchet_[a-z_]+", rule["expr"]):
            name = re.sub(r"^ratchet_gateway_(?=spool_f|shipper)|_total$", "", metric)
            if f'"{name}"' not in SERVICES:
                yield f"no service has the metric {metric}"


def _json_faults(text: str, check: Callable[[str], object] = GoldenLine.model_validate_json) -> Iterator[str]:
    """One value, or one a line, each of which `check` takes: by default rows of a golden set."""
    try:
        json.loads(text)
        lines = [text]
    except ValueError:
        lines = text.splitlines()
    for line in lines:
        try:
            json.loads(line)
            check(line)
        except ValueError as error:
            yield f"{line}: {error}"


def _toml_faults(text: str) -> Iterator[str]:
    """A planted fault of `tests/mutants`."""
    try:
        for fault in tomllib.loads(text)["fault"]:
            Fault(room="docs", **fault)
    except (ValueError, KeyError) as error:
        yield str(error)


_CHECKS: dict[str, Callable[[str], Iterator[str]]] = {
    "sh": _shell_faults,
    "yaml": _yaml_faults,
    "json": _json_faults,
    "toml": _toml_faults,
    "text": lambda text: iter(()),
}
