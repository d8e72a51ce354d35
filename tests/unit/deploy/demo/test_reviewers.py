"""Simulated reviewers err in the planned share only, and never answer held-out questions."""

from __future__ import annotations

from typing import Any

from deploy.demo.data.rows import DataRow
from deploy.demo.reviewers import PAIR, REVIEWERS, Reviewers, faulty_labels, shuffle_labels
from deploy.demo.settings import Fault, PlannedMistakes
from schemas.task_settings import DatasetSettings

LABELS = ("a", "b", "c", "d")
ROWS = [DataRow(f"question {n}", LABELS[n % 4]) for n in range(200)]


class FakeQueue:
    """A console's queue: each question until enough people have answered it."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items = items
        self.answers: dict[str, dict[str, str]] = {}

    async def queue(self, reviewer: str, limit: int, purpose: str | None = None) -> list[dict[str, Any]]:
        unanswered = [
            item
            for item in self.items
            if reviewer not in self.answers.get(item["request_id"], {})
            and len(self.answers.get(item["request_id"], {})) < item["overlap"]
            and purpose in (None, item["purpose"])
        ]
        return unanswered[:limit]

    async def correct(self, request_id: str, reviewer: str, answer: dict[str, Any]) -> bool:
        self.answers.setdefault(request_id, {})[reviewer] = answer["label"]
        return True


def item(n: int, purpose: str = "low_confidence", overlap: int = 1) -> dict[str, Any]:
    return {"request_id": f"r{n}", "prediction_id": f"p{n}", "purpose": purpose, "overlap": overlap}


async def worked(
    items: list[dict[str, Any]], mistakes: PlannedMistakes, faulty: dict[str, str] | None = None
) -> tuple[FakeQueue, Reviewers]:
    queue = FakeQueue(items)
    people = Reviewers(queue, LABELS, mistakes, faulty)
    for n, row in enumerate(ROWS):
        people.add_prediction(f"p{n}", row)
    for _ in range(3):
        for reviewer in REVIEWERS:
            await people.answer_queue(reviewer)
    return queue, people


async def test_reviewers_who_never_err_answer_every_question_once_with_its_label() -> None:
    queue, people = await worked([item(n) for n in range(200)], PlannedMistakes(wrong_share=0.0))
    assert {n: list(queue.answers[f"r{n}"].values()) for n in range(200)} == {n: [ROWS[n].label] for n in range(200)}
    assert people.counts.answers == 200
    assert people.counts.wrong == 0
    assert len(people.corrected) == 200


async def test_about_the_planned_share_of_answers_is_wrong() -> None:
    _, people = await worked([item(n) for n in range(200)], PlannedMistakes(wrong_share=0.2))
    assert 25 <= people.counts.wrong <= 57


async def test_a_second_person_disagrees_in_the_planned_share() -> None:
    queue, people = await worked(
        [item(n, overlap=2) for n in range(50)], PlannedMistakes(wrong_share=0.0, disagree_share=1.0)
    )
    assert all(len(set(answers.values())) == 2 for answers in queue.answers.values())
    assert people.counts.disagreed == 50
    assert people.counts.answers == 100


async def test_a_question_about_an_unknown_prediction_is_not_answered() -> None:
    queue, people = await worked([item(9_999), item(3)], PlannedMistakes(wrong_share=0.0))
    assert list(queue.answers) == ["r3"]
    assert people.counts.answers == 1


async def test_corrections_have_shuffled_labels_but_pairs_are_judged_honestly() -> None:
    shuffled = {row.text: "nonsense" for row in ROWS}
    items = [item(1), {**item(2, PAIR)}]
    queue, people = await worked(items, PlannedMistakes(wrong_share=0.0), shuffled)
    assert list(queue.answers["r1"].values()) == ["nonsense"]
    assert list(queue.answers["r2"].values()) == [ROWS[2].label]
    assert people.corrected == {"p1"}
    assert dict(people.counts.by_purpose) == {PAIR: 1, "low_confidence": 1}


async def test_once_a_cycle_runs_only_pairs_are_judged() -> None:
    queue = FakeQueue([item(1), item(2, PAIR)])
    people = Reviewers(queue, LABELS, PlannedMistakes(wrong_share=0.0))
    people.add_prediction("p1", ROWS[1])
    people.add_prediction("p2", ROWS[2])
    people.only_pairs = True
    await people.answer_queue("ada")
    assert list(queue.answers) == ["r2"]


def test_with_one_class_every_text_has_the_same_label_and_nobody_errs() -> None:
    labels = faulty_labels(Fault.ONE_CLASS, ROWS, seed=1)
    assert set(labels) == {row.text for row in ROWS}
    assert set(labels.values()) == {"a"}
    assert PlannedMistakes.of(Fault.ONE_CLASS, 0.3, 0.3, 1) == PlannedMistakes(0.0, 0.0, 1)


def test_noise_is_each_reviewers_own_and_nobody_disagrees_on_purpose() -> None:
    assert faulty_labels(Fault.NOISE, ROWS, seed=1) == {}
    assert PlannedMistakes.of(Fault.NOISE, 0.3, 0.25, 1) == PlannedMistakes(0.3, 0.0, 1)


async def test_two_reviewers_agree_often_enough_for_a_data_set_as_people_usually_do() -> None:
    usual = PlannedMistakes()
    queue, _ = await worked([item(n, overlap=2) for n in range(200)], usual)
    agree = sum(len(set(answers.values())) == 1 for answers in queue.answers.values())
    assert agree / 200 > DatasetSettings().min_agreement - 0.04


def test_shuffling_keeps_the_labels_but_not_their_rows() -> None:
    shuffled = shuffle_labels(ROWS, seed=1)
    assert sorted(shuffled.values()) == sorted(row.label for row in ROWS)
    right = sum(shuffled[row.text] == row.label for row in ROWS)
    assert right < 100
