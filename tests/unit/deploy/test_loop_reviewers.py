"""Played reviewers: honest but for the asked share, blind, and never at work on held-out questions."""

from __future__ import annotations

from typing import Any

from deploy.demo.data.csv_file import Row
from deploy.demo.reviewers import PAIR, REVIEWERS, Habits, Reviewers, shuffled_truth

LABELS = ("a", "b", "c", "d")
ROWS = [Row(f"question {n}", LABELS[n % 4]) for n in range(200)]


class FakeDesk:
    """A console's queue: each question until enough people have answered it."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items = items
        self.answers: dict[str, dict[str, str]] = {}

    async def queue(self, reviewer: str, limit: int, purpose: str | None = None) -> list[dict[str, Any]]:
        open_ones = [
            item
            for item in self.items
            if reviewer not in self.answers.get(item["request_id"], {})
            and len(self.answers.get(item["request_id"], {})) < item["overlap"]
            and purpose in (None, item["purpose"])
        ]
        return open_ones[:limit]

    async def correct(self, request_id: str, reviewer: str, answer: dict[str, Any]) -> bool:
        self.answers.setdefault(request_id, {})[reviewer] = answer["label"]
        return True


def item(n: int, purpose: str = "low_confidence", overlap: int = 1) -> dict[str, Any]:
    return {"request_id": f"r{n}", "prediction_id": f"p{n}", "purpose": purpose, "overlap": overlap}


async def worked(
    items: list[dict[str, Any]], habits: Habits, taught: dict[str, str] | None = None
) -> tuple[FakeDesk, Reviewers]:
    desk = FakeDesk(items)
    people = Reviewers(desk, LABELS, habits, taught)
    for n, row in enumerate(ROWS):
        people.know(f"p{n}", row)
    for _ in range(3):
        for reviewer in REVIEWERS:
            await people.round(reviewer)
    return desk, people


async def test_reviewers_who_never_err_answer_every_question_once_with_its_label() -> None:
    desk, people = await worked([item(n) for n in range(200)], Habits(wrong_share=0.0))
    assert {n: list(desk.answers[f"r{n}"].values()) for n in range(200)} == {n: [ROWS[n].label] for n in range(200)}
    assert people.tally.spent == 200
    assert people.tally.wrong == 0
    assert len(people.corrected) == 200


async def test_about_the_asked_share_of_answers_is_wrong() -> None:
    _, people = await worked([item(n) for n in range(200)], Habits(wrong_share=0.2))
    assert 25 <= people.tally.wrong <= 57


async def test_a_second_person_disagrees_when_told_to() -> None:
    desk, people = await worked([item(n, overlap=2) for n in range(50)], Habits(wrong_share=0.0, disagree_share=1.0))
    assert all(len(set(answers.values())) == 2 for answers in desk.answers.values())
    assert people.tally.disagreed == 50
    assert people.tally.spent == 100


async def test_a_question_on_an_unknown_prediction_is_left_alone() -> None:
    desk, people = await worked([item(9_999), item(3)], Habits(wrong_share=0.0))
    assert list(desk.answers) == ["r3"]
    assert people.tally.spent == 1


async def test_shuffled_labels_are_taught_but_pairs_are_judged_honestly() -> None:
    taught = {row.text: "nonsense" for row in ROWS}
    items = [item(1), {**item(2, PAIR)}]
    desk, people = await worked(items, Habits(wrong_share=0.0), taught)
    assert list(desk.answers["r1"].values()) == ["nonsense"]
    assert list(desk.answers["r2"].values()) == [ROWS[2].label]
    assert people.corrected == {"p1"}
    assert dict(people.tally.by_purpose) == {PAIR: 1, "low_confidence": 1}


async def test_once_a_cycle_runs_only_pairs_are_judged() -> None:
    desk = FakeDesk([item(1), item(2, PAIR)])
    people = Reviewers(desk, LABELS, Habits(wrong_share=0.0))
    people.know("p1", ROWS[1])
    people.know("p2", ROWS[2])
    people.only_pairs = True
    await people.round("ada")
    assert list(desk.answers) == ["r2"]


def test_shuffled_truth_keeps_the_labels_and_loses_their_places() -> None:
    shuffled = shuffled_truth(ROWS, seed=1)
    assert sorted(shuffled.values()) == sorted(row.label for row in ROWS)
    right = sum(shuffled[row.text] == row.label for row in ROWS)
    assert right < 100
