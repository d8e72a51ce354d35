"""An error in a task file is reported with file, line, what was found and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.tasks import TaskSpec
from services.scheduler.task_files import apply_task, read_task
from shared.errors import ConfigurationError

GOOD = """\
name: desk
kind: classification
system_prompt: Classify.
labels: [delivery, refund]
# Why we are strict here.
failures:
  confidence_threshold: 0.7
"""
SHIPPED = Path(__file__).parents[3] / "deploy" / "tasks"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "desk.yaml"


def reason_of(file: Path, text: str | bytes) -> str:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigurationError) as caught:
        read_task(file)
    assert "template.yaml" in caught.value.way_out
    return caught.value.reason.replace(f"{file}", "FILE")


def test_a_valid_file_is_a_task(file: Path) -> None:
    file.write_text(GOOD)
    assert read_task(file) == TaskSpec.model_validate(
        {
            "name": "desk", "kind": "classification", "system_prompt": "Classify.", "labels": ["delivery", "refund"],
            "failures": {"confidence_threshold": 0.7},
        }
    )  # fmt: skip


@pytest.mark.parametrize("name", ["template", "support-desk"])
def test_the_shipped_files_are_tasks(name: str) -> None:
    read_task(SHIPPED / f"{name}.yaml")


def test_the_template_shows_every_key_with_its_default() -> None:
    spec = read_task(SHIPPED / "template.yaml")
    text = (SHIPPED / "template.yaml").read_text()
    sections = ("failures", "dataset", "training", "evaluation", "rollout", "prices", "redaction")
    for section in sections:
        default = TaskSpec.model_fields[section].default
        assert getattr(spec, section) == default
        assert all(f"\n  {key}:" in text for key in type(default).model_fields)
    assert all(f"\n{key}:" in text for key in TaskSpec.model_fields if key != "golden")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "FILE:1: found nothing; expected keys with values"),
        ("- a\n- b\n", "FILE:1: found"),
        ("name: desk\nkind: [\n", "FILE:3: found invalid YAML"),
        ("name: desk\n\tkind: x\n", "FILE:2: found invalid YAML"),
        ("name: desk\nname: other\n", "FILE:2: found invalid YAML"),
        (GOOD + "  confidence_treshold: 1\n", "FILE:8: failures.confidence_treshold: found an unknown key; did"),
        (GOOD + "zzz: 1\n", "FILE:8: zzz: found an unknown key; expected one of: base_model"),
        (GOOD.replace("0.7", "1.7"), ".confidence_threshold: found 1.7; expected less than or equal to 1"),
        (GOOD.replace("0.7", "much"), "FILE:7: failures.confidence_threshold: found 'much'; expected a valid number"),
        (GOOD.replace("[delivery, refund]", "\n  - delivery\n  - 3"), "FILE:6: labels.1: found 3; expected a valid"),
        (GOOD.replace("refund", "delivery"), "FILE:4: labels must be unique"),
        (GOOD.replace("classification", "clasification"), "FILE:2: kind: found 'clasification'; expected 'cla"),
        (GOOD.replace("name: desk", "name: My Desk"), "FILE:1: name: found 'My Desk'; expected text to match pattern"),
        (GOOD.replace("system_prompt: Classify.\n", ""), "system_prompt: found nothing; expected the text"),
        (GOOD + "cron: every monday\n", "FILE:8: cron: found 'every monday'; expected five fields in UTC"),
        (GOOD + "rollout: fast\n", "FILE:8: rollout: found 'fast'; expected keys with values"),
        (GOOD + "golden_file: none.jsonl\n", "FILE:8: golden_file:"),
        (b"name: \xff", "FILE:1: found the byte 0xff; expected UTF-8 text"),
        ("name: " + "x" * 1_000_001, "FILE:1: found 1,000,007 bytes; expected at most 1,000,000"),
    ],
)  # fmt: skip
def test_an_error_is_reported_with_its_line(file: Path, text: str | bytes, expected: str) -> None:
    assert expected in reason_of(file, text)


def test_aliases_that_expand_without_end_are_refused(file: Path) -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9))
    assert "expand" in reason_of(file, f"l0: &l0 [x]\n{levels}\n")


def test_all_errors_are_reported_at_once_in_the_order_of_their_lines(file: Path) -> None:
    reason = reason_of(file, GOOD.replace("0.7", "7") + "dataset:\n  eval_share: 2\n")
    assert [line.split(": ")[0] for line in reason.splitlines()] == ["FILE:7", "FILE:9"]


def test_a_golden_file_is_found_relative_to_the_task_file(file: Path) -> None:
    (file.parent / "golden.jsonl").write_text('{"text": "where is it?", "label": "delivery"}\n\n')
    file.write_text(GOOD + "golden_file: golden.jsonl\n")
    assert [example.label for example in read_task(file).golden] == ["delivery"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{oops", "golden.jsonl:2: found '{oops'"),
        ('{"text": "a"}', "golden.jsonl:2: label: Field required"),
        ('{"text": "a", "label": "refnd"}', "golden.jsonl:2: label: found 'refnd'; did you mean 'refund'?"),
    ],
)
def test_an_error_in_a_golden_file_is_reported_with_its_line(file: Path, row: str, expected: str) -> None:
    (file.parent / "golden.jsonl").write_text('{"text": "where is it?", "label": "delivery"}\n' + row + "\n")
    assert expected in reason_of(file, GOOD + "golden_file: golden.jsonl\n")


def test_applying_a_file_copies_its_golden_file_and_comments(file: Path, tmp_path: Path) -> None:
    (file.parent / "golden.jsonl").write_text('{"text": "where is it?", "label": "delivery"}\n')
    file.write_text(GOOD + "golden_file: golden.jsonl\n")
    target = tmp_path / "tasks"
    spec = apply_task(file, target)
    applied = read_task(target / "desk.yaml")
    assert applied.golden == spec.golden
    assert "# Why we are strict here." in (target / "desk.yaml").read_text()


def test_an_invalid_file_is_not_applied(file: Path, tmp_path: Path) -> None:
    file.write_text("name: desk\n")
    with pytest.raises(ConfigurationError):
        apply_task(file, tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()
