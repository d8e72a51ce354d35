"""Reads a task's YAML file. An error names the file, the line, what was found and what was expected.

`golden_file` is read with it (golden/file.py); it is named relative to the YAML's own folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from schemas.conversation import JsonObject
from schemas.golden import GoldenRow, GoldenSet
from schemas.tasks import TaskKind, TaskSpec
from services.scheduler.domain import valid_cron
from services.scheduler.golden.file import UNREADABLE_WAY_OUT, brief, read_golden_file
from services.scheduler.golden.history import history_path, refuse_forgotten
from shared.errors import ConfigurationError, field_path
from shared.files import write_atomically
from shared.grading.json_schema import schema_fault
from shared.storage.golden_sets import golden_set

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
WAY_OUT = "deploy/tasks/template.yaml shows every key with what it means."
_EXPECTED = {
    "name": "the task's name: lower case letters, digits and dashes",
    "kind": ", ".join(TaskKind),
    "system_prompt": "the text that the model is told before every question",
    "evaluation.judge.url": "an address such as https://api.openai.com/v1, without a password or a query",
}
"""What an operator reads instead of a pattern, or where a required key is not there."""

_EXPECTED_BY_MESSAGE = {
    "Input should be a valid dictionary": "keys with values",
    "Input should be a valid tuple": "a list",
    "Input should be ": "",
    "Input should ": "to ",
    "String should ": "text to ",
}
"""How pydantic begins its messages, and what an operator reads instead."""


KnownSet = Callable[[Path, TaskSpec], GoldenSet | None]


@dataclass(frozen=True)
class TaskFile:
    """A task as its YAML has it, and the rows of its golden file in their order."""

    path: Path
    spec: TaskSpec
    golden: tuple[GoldenRow, ...] = ()

    @property
    def golden_path(self) -> Path | None:
        return None if self.spec.golden_file is None else self.path.parent / self.spec.golden_file


def read_task(path: Path) -> TaskSpec:
    """Return the task of a file; its `golden_set` names the rows of its golden file. Raises ConfigurationError."""
    return read_task_file(path).spec


def read_task_file(path: Path, known_set: KnownSet = lambda file, spec: None) -> TaskFile:
    """Parse and check a task file and its golden file, unless `known_set` returns the set of that file.

    Raises ConfigurationError.
    """
    return _parse(path, known_set)[0]


def apply_task(source: Path, folder: Path) -> TaskSpec:
    """Check a task file and copy it, with its golden file, to the `folder` that the scheduler watches.

    A golden set is never lost in passing: where `source` names no golden file, the task's golden set in `folder` stays.
    Raises ConfigurationError, also for a golden file that lacks rows of that set, or has some of forgotten people, and
    then nothing was copied.
    """
    task, document = _parse(source, lambda file, spec: None)
    target = folder / f"{task.spec.name}.yaml"
    golden_name = f"{task.spec.name}.golden.jsonl"
    if task.golden_path is not None:
        _refuse_lost_rows(task, target)
        refuse_forgotten(task.golden, history_path(folder, task.spec.name), str(task.golden_path))
        write_atomically(folder / golden_name, task.golden_path.read_bytes())
        document["golden_file"] = golden_name
    elif (folder / golden_name).is_file():
        found = golden_set(task.spec.name, read_golden_file(folder / golden_name, task.spec))
        document["golden_file"] = golden_name
        task = replace(task, spec=task.spec.model_copy(update={"golden_file": golden_name, "golden_set": found}))
    _write(document, target)
    return task.spec


def set_golden_file(path: Path, name: str) -> None:
    """Make a task's YAML name its golden file; the rest of it, comments too, stays."""
    document = _load(path)
    document["golden_file"] = name
    _write(document, path)


def _refuse_lost_rows(task: TaskFile, target: Path) -> None:
    try:
        present = read_task_file(target).golden if target.is_file() else ()
    except ConfigurationError:  # What is there is no task, so it has no golden set.
        return
    given = {row.row_id for row in task.golden}
    if lost := [row.row_id for row in present if row.row_id not in given]:
        name, file = task.spec.name, target.parent / f"{task.spec.name}.golden.jsonl"
        raise ConfigurationError(
            f"{task.golden_path} lacks {len(lost)} of the {len(present)} rows of {name}'s golden set: {lost[0]} …",
            f"Copy {file} over it, or take the rows out with a reason: ratchet golden remove {name} ROW --reason …",
        )


def _parse(path: Path, known_set: KnownSet) -> tuple[TaskFile, CommentedMap]:
    document = _load(path)
    if not isinstance(document, CommentedMap):
        raise _error(path, 1, f"found {brief(document)}", "expected keys with values, such as `name: support-desk`")
    if "golden_set" in document:
        line = _line(document, ("golden_set",))
        raise _error(path, line, "golden_set: found a key that only the scheduler sets", "expected golden_file")
    budget = [MAX_NODES]
    data = _plain(path, document, budget, depth=0)
    try:
        spec = TaskSpec.model_validate(data)
    except ValidationError as error:
        raise _describe_errors(path, document, error) from error
    if not valid_cron(spec.cron):
        line = _line(document, ("cron",))
        raise _error(path, line, f"cron: found {spec.cron!r}", "expected five fields in UTC, such as `0 3 * * 1`")
    for location, schema in _answer_schemas(spec):
        if fault := schema_fault(schema):
            key = ".".join(map(str, location))
            raise _error(path, _line(document, location), f"{key}: found {fault}", "expected a JSON Schema")
    if spec.golden_file is None:
        return TaskFile(path, spec), document
    file = path.parent / spec.golden_file
    try:
        found = "" if file.is_file() else f"found no file {file}"
    except OSError as error:  # Its folder may not be entered, or its name is too long.
        found = f"{file} cannot be read: {error.strerror}"
    if found:
        line = _line(document, ("golden_file",))
        raise _error(path, line, f"golden_file: {found}", "expected a JSON-lines file, relative to this one")
    if (known := known_set(file, spec)) is not None:
        return TaskFile(path, spec.model_copy(update={"golden_set": known})), document
    rows = read_golden_file(file, spec)
    return TaskFile(path, spec.model_copy(update={"golden_set": golden_set(spec.name, rows)}), rows), document


def _answer_schemas(spec: TaskSpec) -> list[tuple[tuple[str | int, ...], JsonObject]]:
    """Return the schemas that answers are checked by, each with its place in the file."""
    schemas: list[tuple[tuple[str | int, ...], JsonObject]] = [
        (("tools", number, "parameters"), tool.parameters) for number, tool in enumerate(spec.tools)
    ]
    return schemas if spec.output_schema is None else [(("output_schema",), spec.output_schema)]


def _write(document: CommentedMap, target: Path) -> None:
    partial = target.with_suffix(".tmp")  # Not *.yaml: the scheduler must not read half a file.
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        _yaml().dump(document, file)
    partial.replace(target)


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
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}", UNREADABLE_WAY_OUT) from error
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
    if detail["type"] == "string_pattern_mismatch" and key in _EXPECTED:
        return f"{key}: found {brief(detail['input'])}; expected {_EXPECTED[key]}"
    message = detail["msg"].removeprefix("Value error, ")
    for prefix, replacement in _EXPECTED_BY_MESSAGE.items():
        if message.startswith(prefix):
            expected = replacement + message.removeprefix(prefix)
            return f"{key}: found {brief(detail['input'])}; expected {expected.split(' or instance of ')[0]}"
    return f"{key}: {message}" if key else message


def _allowed_keys(location: Sequence[str | int]) -> set[str]:
    model: type[BaseModel] = TaskSpec
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # The index of a sequence.
        inner = [a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type)]
        model = next((a for a in inner if issubclass(a, BaseModel)), model)
    return set(model.model_fields) - {"golden_set"}


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


def _error(path: Path, line: int, found: str, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{path}:{line}: {found}; {expected}", WAY_OUT)
