"""`ratchet loop --kind generation`: its rows, its task, its reviewers and what is measured of its texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.clients import GatewayAnswer
from deploy.demo.data.rows import DataError, DataRow, LoopData, read_lines
from deploy.demo.data.split import split_unlabelled
from deploy.demo.data.task_file import apply_loop_task
from deploy.demo.report.measure import measure
from deploy.demo.reviewers import PAIR, Reviewers
from deploy.demo.settings import DataOptions, LoopOptions, PlannedMistakes
from deploy.demo.story import read_data
from schemas.tasks import TaskKind, TaskSpec

SPEC = TaskSpec.model_validate({"name": "sums", "kind": "generation", "system_prompt": "Sum up."})
OURS = {"text": "A long text about parcels.", "answer": "Parcels are late this week."}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_rows_are_read_and_what_cannot_be_trained_on_is_counted(tmp_path: Path) -> None:
    short = {"text": "Something else.", "answer": "Yes."}
    data = read_lines(write(tmp_path / "t.jsonl", OURS, "", short, OURS, {**OURS, "text": "x" * 2_001}), SPEC)
    assert [(row.text, row.label) for row in data.rows] == [(OURS["text"], OURS["answer"])]
    assert sum(data.dropped.values()) == 3
    assert data.dropped["answer under 20 characters"] == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "an object"), ('{"text": "x"}', "an `answer`"), ('{"text": " ", "answer": "y"}', "empty"),
        ("{", "line 1"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_row_is_named_with_what_to_write(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as raised:
        read_lines(write(tmp_path / "t.jsonl", OURS, line), SPEC)
    assert ":2:" in raised.value.reason
    assert "what was asked" in raised.value.way_out


def test_without_data_it_is_said_where_texts_are_to_be_had() -> None:
    with pytest.raises(DataError) as raised:
        read_data(LoopOptions(data=DataOptions(kind=TaskKind.GENERATION)))
    assert "--data" in raised.value.way_out


def test_texts_are_split_into_disjoint_parts_that_two_cores_can_play() -> None:
    rows = tuple(DataRow(f"{n * 7919} is about {n * 104729} and {n * 15485863}", f"summary {n}") for n in range(900))
    split = split_unlabelled(LoopData(rows, (), {}), seed=20, exact=False)
    assert (len(split.traffic), len(split.held_out), len(split.live)) == (200, 60, 300)
    assert len({row.text for part in (split.traffic, split.held_out, split.live) for row in part}) == 560


def test_the_task_is_a_generation_with_the_users_prompt(tmp_path: Path) -> None:
    nothing, file = LoopData((), (), {}), tmp_path / "t.jsonl"
    shipped = apply_loop_task(tmp_path, "sums", DataOptions(file, kind=TaskKind.GENERATION), nothing, 200)
    assert (shipped.kind, shipped.evaluation.text_metric) == (TaskKind.GENERATION, "rouge_l")
    source = DataOptions(file, kind=TaskKind.GENERATION, prompt="Answer in one sentence.")
    own = apply_loop_task(tmp_path, "mine", source, nothing, 2_000)
    assert (own.name, own.system_prompt, own.failures.review_budget_per_day) == (
        "mine",
        "Answer in one sentence.",
        4_000,
    )


class Queue:
    """A console with one pair of texts."""

    def __init__(self, *answers: str) -> None:
        self.item = {
            "request_id": "r",
            "prediction_id": "p",
            "purpose": PAIR,
            "answers": [{"text": a} for a in answers],
        }
        self.given: list[dict[str, Any]] = []

    async def queue(self, reviewer: str, limit: int, purpose: str | None = None) -> list[dict[str, Any]]:
        return [self.item] if purpose == PAIR else []

    async def correct(self, request_id: str, reviewer: str, answer: dict[str, Any]) -> bool:
        self.given.append(answer)
        return True


@pytest.mark.parametrize(
    ("answers", "preferred"),
    [
        (("Parcels are late.", "I cannot say."), "a"), (("Hm.", "Parcels are late"), "b"),
        (("No.", "Hm."), "both_wrong"),
        ((OURS["answer"], OURS["answer"].upper()), "both_right"),
    ],
)  # fmt: skip
async def test_people_prefer_the_text_that_is_nearer_to_their_own(answers: tuple[str, str], preferred: str) -> None:
    console = Queue(*answers)
    people = Reviewers(console, ["x"], PlannedMistakes(wrong_share=0.0), spec=SPEC)
    people.add_prediction("p", DataRow(OURS["text"], OURS["answer"]))
    await people.answer_queue("ada")
    assert [answer["preference"] for answer in console.given] == [preferred]


def test_the_score_is_the_mean_of_the_tasks_metric_and_a_failed_request_is_worth_nothing() -> None:
    row = DataRow("x", "police kill the gunman")
    answers = [
        GatewayAnswer(row, text="police killed the gunman", variant="base"),
        GatewayAnswer(row, text="Police kill the gunman.", variant="base"),
        GatewayAnswer(row, error="500"),
    ]
    measured = measure(answers, SPEC)
    assert measured.text_score is not None
    assert measured.text_score.value == pytest.approx((0.75 + 1.0 + 0.0) / 3)
    assert 0.0 <= measured.text_score.low < measured.text_score.value < measured.text_score.high <= 1.0
    assert (measured.failed, measured.by_label) == (1, {})
