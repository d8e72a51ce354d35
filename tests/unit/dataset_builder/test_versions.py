"""A published version is read as what a later one is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from schemas.conversation import Message, Part, Role, ToolCall
from schemas.datasets import Example
from services.dataset_builder.inspection.changes import rows_of
from services.dataset_builder.publishing.versions import read_rows

ANSWERS = (
    Message(role=Role.ASSISTANT, content="refund"),
    Message(role=Role.ASSISTANT, content="a long answer " * 40),
    Message(role=Role.ASSISTANT, content=(Part(type="text", text="two"), Part(type="text", text="parts"))),
    Message(role=Role.ASSISTANT, content="I look.", tool_calls=(ToolCall(name="look_up", arguments="{}"),)),
    Message(role=Role.ASSISTANT, refusal="I must not."),
)


class Store:
    """An artifact store with one version."""

    def __init__(self, parts: dict[str, list[Example]]) -> None:
        self._files = {
            f"{part}.jsonl": [row.model_dump_json().encode() for row in rows] for part, rows in parts.items()
        }

    def lines(self, kind: str, name: str, file: str) -> Iterator[bytes]:
        assert (kind, name) == ("datasets", "desk-1")
        return iter([*self._files[file], b"\n"])


def example(number: int, answer: Message) -> Example:
    return Example(
        example_id=f"ex-{number}",
        messages=(Message(role=Role.USER, content=f"question {number}"), answer),
        group="g",
        weight=1.0 + number / 8,
        prediction_ids=(f"p{number}", f"q{number}"),
        correction_ids=(f"c{number}",),
        predicted_at=datetime(2026, 11, 2, tzinfo=UTC),
    )


def test_a_version_that_is_read_is_compared_by_what_it_was_built_with() -> None:
    examples = [example(number, answer) for number, answer in enumerate(ANSWERS)]
    parts = {"train": examples[:3], "eval": examples[3:]}
    built = rows_of("train", parts["train"]) | rows_of("eval", parts["eval"])
    assert len(built) == len(ANSWERS)
    assert read_rows(Store(parts), "desk-1") == built
