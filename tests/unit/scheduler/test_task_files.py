"""An error in a task file is reported with file, line, what was found and what was expected."""

from __future__ import annotations

import json
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
    sections = ("failures", "dataset", "training", "evaluation", "rollout", "redaction")
    for section in sections:
        default = TaskSpec.model_fields[section].default
        assert getattr(spec, section) == default
        assert all(f"\n  {key}:" in text for key in type(default).model_fields)
    assert all(f"\n{key}:" in text for key in TaskSpec.model_fields if key != "golden_set")


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
        (GOOD.replace("refund", "delivery"), "FILE:4: labels: delivery is there twice; each must be unique"),
        (GOOD.replace("classification", "clasification"), "FILE:2: kind: found 'clasification'; expected 'cla"),
        (GOOD.replace("name: desk", "name: My Desk"), "FILE:1: name: found 'My Desk'; expected the task's name: lower"),
        (GOOD.replace("kind: classification\n", ""), "kind: found nothing; expected classification, multi_label, gen"),
        (GOOD + "evaluation: {judge: {url: x.com, model: m}}\n", "evaluation.judge.url: found 'x.com'; expected an"),
        (GOOD.replace("system_prompt: Classify.\n", ""), "system_prompt: found nothing; expected the text"),
        (GOOD + "cron: every monday\n", "FILE:8: cron: found 'every monday'; expected five fields in UTC"),
        (GOOD + "rollout: fast\n", "FILE:8: rollout: found 'fast'; expected keys with values"),
        (GOOD + "retention_days: true\n", "FILE:8: retention_days: found true, which only a switch may be"),
        (GOOD + "evaluation: {min_gain: false}\n", "FILE:8: evaluation.min_gain: found false, which only a switch may"),
        (GOOD + "rollout: {canary_steps: [true, 50]}\n", "FILE:8: rollout.canary_steps: found true, which only"),
        (GOOD + "golden_file: none.jsonl\n", "FILE:8: golden_file: found no file"),
        (GOOD + "golden_set: {set_id: x, rows: 1}\n", "FILE:8: golden_set: found a key that only the scheduler sets"),
        (GOOD + "golden: []\n", "FILE:8: golden: found an unknown key; did you mean `golden_file`?"),
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


def golden(file: Path, *rows: tuple[str, str]) -> str:
    """Write a golden file beside the task file; returns the text of a task file that names it."""
    lines = (json.dumps({"text": text, "label": label}) for text, label in rows)
    (file.parent / "golden.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return GOOD + "golden_file: golden.jsonl\n"


WHERE, BACK = ("where is it?", "delivery"), ("I want it back", "refund")


def test_a_golden_file_is_found_relative_to_the_task_file_and_named_by_its_rows(file: Path) -> None:
    file.write_text(golden(file, WHERE, BACK))
    first = read_task(file).golden_set
    assert first is not None
    assert (first.rows, first.set_id.startswith("desk-")) == (2, True)
    file.write_text(golden(file, BACK, WHERE))
    assert read_task(file).golden_set == first
    file.write_text(golden(file, WHERE))
    assert read_task(file).golden_set != first


def test_an_error_in_a_golden_file_is_reported_with_its_line(file: Path) -> None:
    text = golden(file, WHERE, ("a", "refnd"))
    file.write_text(text)
    with pytest.raises(
        ConfigurationError, match=r"golden.jsonl:2: label: 'refnd' is not a label of the task; did you mean 'refund'\?"
    ):
        read_task(file)


def test_applying_a_file_copies_its_golden_file_and_comments(file: Path, tmp_path: Path) -> None:
    file.write_text(golden(file, WHERE))
    target = tmp_path / "tasks"
    spec = apply_task(file, target)
    applied = read_task(target / "desk.yaml")
    assert applied.golden_set == spec.golden_set is not None
    assert "# Why we are strict here." in (target / "desk.yaml").read_text()


def test_a_task_that_is_applied_again_without_a_golden_file_keeps_its_golden_set(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "tasks"
    file.write_text(golden(file, WHERE))
    before = apply_task(file, target).golden_set
    file.write_text(GOOD.replace("0.7", "0.8"))
    assert apply_task(file, target).golden_set == before is not None
    assert read_task(target / "desk.yaml").golden_set == before


def test_a_golden_file_that_lacks_rows_of_the_tasks_golden_set_is_not_applied(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "tasks"
    file.write_text(golden(file, WHERE, BACK))
    before = apply_task(file, target).golden_set
    file.write_text(golden(file, WHERE))
    with pytest.raises(ConfigurationError, match="lacks 1 of the 2 rows of desk's golden set") as caught:
        apply_task(file, target)
    assert "ratchet golden remove desk" in caught.value.way_out
    assert read_task(target / "desk.yaml").golden_set == before


def test_an_invalid_file_is_not_applied(file: Path, tmp_path: Path) -> None:
    file.write_text("name: desk\n")
    with pytest.raises(ConfigurationError):
        apply_task(file, tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()


EXTRACTION = """\
name: orders
kind: extraction
system_prompt: Extract.
output_schema:
  type: object
  properties: {code: {type: string}}
"""
TOOLS = """\
name: home
kind: tools
system_prompt: Call.
tools:
  - name: stop
  - name: go
    parameters: {type: object, properties: {code: {type: string}}, required: [code]}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EXTRACTION.replace("string}", 'string, pattern: "^a{,3}$"}'), 'FILE:4: output_schema: found "^a{,3}$" is not'),
        (EXTRACTION + "  required: [code, code]\n", 'FILE:4: output_schema: found ["code","code"] has non-unique'),
        (EXTRACTION + "  $schema: mine\n", "FILE:4: output_schema: found Unknown meta-schema: 'mine'"),
        (TOOLS.replace("[code]", "[code, code]"), 'FILE:7: tools.1.parameters: found ["code","code"] has non-unique'),
    ],
)
def test_a_schema_that_no_answer_can_be_checked_by_is_refused(file: Path, text: str, expected: str) -> None:
    """All answers of both arms would be invalid, and a candidate that writes garbage as good as production."""
    found = reason_of(file, text)
    assert expected in found and "expected a JSON Schema" in found
    for valid in (EXTRACTION, TOOLS):
        file.write_text(valid)
        read_task(file)
