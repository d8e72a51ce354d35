"""Reads a task's YAML file. An error names the file, the line, what was found and what was expected.

`golden_file` is a JSON-lines file of {"text", "label"}, named relative to the YAML's own folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from schemas.tasks import GoldenExample, TaskSpec
from services.scheduler.domain import valid_cron
from shared.errors import ConfigurationError, describe_validation_error, field_path
from shared.files import write_atomically

MAX_BYTES = 1_000_000
MAX_GOLDEN_BYTES = 20_000_000
MAX_NODES = 20_000
WAY_OUT = "deploy/tasks/template.yaml shows every key with what it means."
_EXPECTED = {
    "name": "the task's name: lower case letters, digits and dashes",
    "kind": "classification or generation",
    "system_prompt": "the text that the model is told before every question",
}

_EXPECTED_BY_MESSAGE = {
    "Input should be a valid dictionary": "keys with values",
    "Input should be a valid tuple": "a list",
    "Input should be ": "",
    "Input should ": "to ",
    "String should ": "text to ",
}
"""How pydantic begins its messages, and what an operator reads instead."""


def read_task(path: Path) -> TaskSpec:
    """Parse and check a task file and its golden file. Raises ConfigurationError."""
    return _parse(path)[0]


def apply_task(source: Path, folder: Path) -> TaskSpec:
    """Check a task file and copy it, with its golden file, to the `folder` that the scheduler watches.

    Raises ConfigurationError, and then nothing was copied.
    """
    spec, document = _parse(source)
    if spec.golden_file is not None:
        name = f"{spec.name}.golden.jsonl"
        write_atomically(folder / name, (source.parent / spec.golden_file).read_bytes())
        document["golden_file"] = name
    target = folder / f"{spec.name}.yaml"
    partial = target.with_suffix(".tmp")  # Not *.yaml: the scheduler must not read half a file.
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        _yaml().dump(document, file)
    partial.replace(target)
    return spec


def _parse(path: Path) -> tuple[TaskSpec, CommentedMap]:
    document = _load(path)
    if not isinstance(document, CommentedMap):
        raise _error(path, 1, f"found {_brief(document)}", "expected keys with values, such as `name: support-desk`")
    budget = [MAX_NODES]
    data = _plain(path, document, budget, depth=0)
    if data.get("golden_file") is not None and data.get("golden"):
        raise _error(path, _line(document, ("golden",)), "found golden and golden_file", "expected one of the two")
    try:
        spec = TaskSpec.model_validate(data)
    except ValidationError as error:
        raise _describe_errors(path, document, error) from error
    if not valid_cron(spec.cron):
        line = _line(document, ("cron",))
        raise _error(path, line, f"cron: found {spec.cron!r}", "expected five fields in UTC, such as `0 3 * * 1`")
    if spec.golden_file is not None:
        golden = _read_golden(path, _line(document, ("golden_file",)), spec)
        spec = TaskSpec.model_validate({**data, "golden": golden})
    return spec, document


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4_096
    return yaml


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _error(path, 1, f"found {path.stat().st_size:,} bytes", f"expected at most {MAX_BYTES:,}")
        return _yaml().load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}", WAY_OUT) from error
    except UnicodeDecodeError as error:
        raise _error(path, 1, f"found the byte 0x{error.object[error.start]:02x}", "expected UTF-8 text") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        problem = " ".join(part for part in (error.problem, error.context) if part).splitlines()[0]
        raise _error(path, line, f"found invalid YAML: {problem}", "expected `key: value`") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise _error(path, 1, f"found invalid YAML: {error}", "expected `key: value`") from error


def _plain(path: Path, node: Any, budget: list[int], depth: int) -> Any:
    """Convert a YAML node to plain Python types. The budget stops a small file whose aliases expand to a huge one."""
    budget[0] -= 1
    if budget[0] < 0 or depth > 20:
        raise _error(path, 1, "found aliases that expand without end", "expected a file without such aliases")
    if isinstance(node, CommentedMap):
        return {str(key): _plain(path, value, budget, depth + 1) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [_plain(path, value, budget, depth + 1) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _describe_errors(path: Path, document: CommentedMap, error: ValidationError) -> ConfigurationError:
    """Return one error that lists all problems, in the order of their lines."""
    lines = sorted((_line(document, detail["loc"]), _describe_problem(detail)) for detail in error.errors()[:20])
    return ConfigurationError("\n".join(f"{path}:{line}: {text}" for line, text in lines), WAY_OUT)


def _describe_problem(detail: ErrorDetails) -> str:
    key = field_path(detail)
    if detail["type"] == "extra_forbidden":
        keys = sorted(_allowed_keys(detail["loc"][:-1]))
        near = get_close_matches(str(detail["loc"][-1]), keys, n=1, cutoff=0.5)
        expected = f"did you mean `{near[0]}`?" if near else f"expected one of: {', '.join(keys)}"
        return f"{key}: found an unknown key; {expected}"
    if detail["type"] == "missing":
        return f"{key}: found nothing; expected {_EXPECTED.get(key, 'a value')}"
    message = detail["msg"].removeprefix("Value error, ")
    for prefix, replacement in _EXPECTED_BY_MESSAGE.items():
        if message.startswith(prefix):
            expected = replacement + message.removeprefix(prefix)
            return f"{key}: found {_brief(detail['input'])}; expected {expected.split(' or instance of ')[0]}"
    return f"{key}: {message}" if key else message


def _allowed_keys(location: Sequence[str | int]) -> set[str]:
    model: type[BaseModel] = TaskSpec
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # The index of a sequence.
        inner = [a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type)]
        model = next((a for a in inner if issubclass(a, BaseModel)), model)
    return set(model.model_fields)


def _line(document: CommentedMap, location: Sequence[str | int]) -> int:
    """Return the line, from 1, of the deepest part of `location` that is in the file."""
    node: Any = document
    line = 1
    for part in location:
        try:
            position = node.lc.key(part) if isinstance(node, CommentedMap) else node.lc.item(part)
            line = int(position[0]) + 1
            node = node[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    if not location and "labels" in document:  # All rules that span several keys are about labels.
        return int(document.lc.key("labels")[0]) + 1
    return line


def _read_golden(path: Path, line: int, spec: TaskSpec) -> list[dict[str, Any]]:
    golden = path.parent / str(spec.golden_file)
    try:
        if golden.stat().st_size > MAX_GOLDEN_BYTES:
            raise _error(path, line, f"golden_file: found more than {MAX_GOLDEN_BYTES:,} bytes", "expected fewer")
        rows = golden.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        found = f"golden_file: {golden} cannot be read ({error.strerror})"
        raise _error(path, line, found, "expected a readable file, relative to this one") from error
    except UnicodeDecodeError as error:
        raise _error(path, line, f"golden_file: {golden} is not UTF-8", "expected UTF-8 text") from error
    return [_golden(golden, number, row, spec) for number, row in enumerate(rows, start=1) if row.strip()]


def _golden(golden: Path, number: int, row: str, spec: TaskSpec) -> dict[str, Any]:
    try:
        example = GoldenExample.model_validate(json.loads(row))
    except json.JSONDecodeError as error:
        raise _error(golden, number, f"found {_brief(row)}", 'expected {"text": "…", "label": "…"}') from error
    except ValidationError as error:
        raise _error(
            golden, number, describe_validation_error(error, limit=1), 'expected {"text": "…", "label": "…"}'
        ) from error
    if spec.labels and example.label not in spec.labels:
        near = get_close_matches(example.label, spec.labels, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "expected one of the task's labels"
        raise _error(golden, number, f"label: found {example.label!r}", hint)
    return example.model_dump()


def _brief(value: object) -> str:
    if value is None:
        return "nothing"
    text = f"{value!r}" if not isinstance(value, dict | list) else f"{json.dumps(value, default=str)}"
    return text if len(text) <= 80 else text[:77] + "…"


def _error(path: Path, line: int, found: str, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{path}:{line}: {found}; {expected}", WAY_OUT)
