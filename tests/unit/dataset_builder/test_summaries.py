"""What was measured of a build reads as sentences, figures and tables of its report."""

from __future__ import annotations

from typing import Any

from schemas.conversation import Message, Role
from schemas.datasets import Example
from schemas.quality import Measure
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.personal_data import PersonalData
from services.dataset_builder.building.places import Exclusions
from services.dataset_builder.checks.agreement import Overlap, measure_agreement
from services.dataset_builder.checks.distribution import ClassShare, Distribution
from services.dataset_builder.checks.label_noise import LabelNoise
from services.dataset_builder.checks.measures import Measures
from services.dataset_builder.checks.poisoning import Voter, VoterShift
from services.dataset_builder.inspection.summaries import MAX_ROWS, summaries
from services.dataset_builder.pipeline import Build, Dataset

SPEC = TaskSpec(name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=("refund", "delivery"))


def examples(*weights: float) -> tuple[Example, ...]:
    messages = (Message(role=Role.USER, content="a"), Message(role=Role.ASSISTANT, content="refund"))
    return tuple(
        Example(
            example_id=f"e{n}", messages=messages, group="g", prediction_ids=("p",), correction_ids=("c",), weight=w
        )
        for n, w in enumerate(weights)
    )


def parts(
    measures: Measures, spec: TaskSpec = SPEC, *weights: float, found: PersonalData | None = None
) -> dict[str, Measure]:
    build = Build(Dataset(examples(*weights), (), ()), measures=measures)
    listed = summaries(build, spec, found or PersonalData())
    by_name = {part.name: part for part in listed}
    assert len(by_name) == len(listed)
    return by_name


def rows(part: Measure) -> list[tuple[Any, ...]]:
    assert part.table is not None
    return list(part.table.rows)


def test_what_was_not_measured_says_so_and_what_is_needed() -> None:
    found = parts(Measures(), SPEC, 1.0)
    assert found["agreement"].summary.startswith("Not measured: no question was answered by two people")
    assert found["label_noise"].summary.startswith("Not measured: ")
    assert "30 are needed, 10 of them of one label" in found["distribution"].summary
    assert found["poisoning"].summary == "Nobody labels far differently from others."
    assert found["weights"].summary == "All training rows count the same."
    assert not [part for part in found.values() if part.table is not None]


def test_agreement_is_said_in_a_sentence_and_for_each_label_and_reviewer() -> None:
    same = [Overlap(("ana", "ben"), ("refund", "refund"))] * 3
    agreement = measure_agreement([*same, Overlap(("ana", "ben"), ("delivery", "refund"))])
    found = parts(Measures(agreement=agreement))
    assert "4 questions were answered by two people" in found["agreement"].summary
    assert "75% of the answers agree. From 20 questions on it can stop a build." in found["agreement"].summary
    assert {"questions", "agreement", "upper_bound", "fleiss_kappa"} == set(found["agreement"].figures)
    assert {row[0] for row in rows(found["agreement"])} == {"refund", "delivery"}
    assert found["reviewers"].summary == "Confused: delivery and refund (1)."
    assert [row[:3] for row in rows(found["reviewers"])] == [("ana", 4, 0.75), ("ben", 4, 0.75)]
    recent = parts(Measures(agreement=measure_agreement(same, newest=2)))
    assert "2 questions (the newest of 3) were answered by two people" in recent["agreement"].summary


def test_confusions_of_long_sets_of_labels_fit_into_their_sentence() -> None:
    """Twelve confusions of four long names each ended every build of the task."""
    sets = ["".join(f"a label with a name of its own {chr(97 + n)}{i}, " for i in range(4)) for n in range(13)]
    overlaps = [Overlap(("ana", "ben"), (sets[n], sets[n + 1])) for n in range(12)]
    found = parts(Measures(agreement=measure_agreement(overlaps)))
    assert found["reviewers"].summary.count(" and ") == 10
    assert len(found["reviewers"].summary) < 2_000


def test_label_noise_says_how_many_labels_are_doubted_and_which_are_hard_to_tell() -> None:
    recall = {"refund": (0.9, 40), "delivery": (0.5, 20)}
    part = parts(Measures(noise=LabelNoise(70, 60, 9, recall)))["label_noise"]
    assert "doubts 9 of 60 labels; 0 are held back" in part.summary
    assert part.figures == {
        "rows": 70,
        "judged": 60,
        "doubted": 9,
        "held_back": 0,
        "balanced_accuracy": 0.7,
    }
    assert rows(part) == [("delivery", 20, 0.5), ("refund", 40, 0.9)]


def test_distribution_poisoning_weights_and_personal_data_have_their_figures() -> None:
    shares = (ClassShare("refund", 25, 0.6, 0.7),)
    distribution = Distribution(audits=40, classes=shares, psi=0.2)
    shift = VoterShift(Voter("user", "u1"), 200, 190, 195, (("refund", "delivery", 190),))
    personal = PersonalData({"email": 2, "phone": 1}, changed=3, left=1)
    near = Exclusions(rows=30, of=200, cause="p7", caused=28)
    found = parts(Measures(None, distribution, (shift,), exclusions=near), SPEC, 0.5, 1.0, 2.0, found=personal)
    assert found["near_copies"].summary.startswith("30 of 200 rows are nearly a held-out one")
    assert found["near_copies"].summary.endswith("28 of them are nearly p7.")
    assert found["distribution"].figures["population_stability_index"] == 0.2
    assert rows(found["distribution"]) == [("refund", 25, 0.6, 0.7, 0.1)]
    assert found["poisoning"].summary.startswith("195 rows of 1 reviewers, users or applications wait")
    assert rows(found["poisoning"]) == [("a user", 200, 190, 195)]
    assert (found["weights"].figures, found["weights"].summary[:7]) == ({"least": 0.5, "most": 2.0}, "2 of 3 ")
    assert (found["personal_data"].figures, found["personal_data"].summary[-18:]) == (
        {"email": 2, "phone": 1}, "1 still have some.",
    )  # fmt: skip


def test_a_task_without_labels_has_the_parts_that_apply_and_long_tables_are_cut() -> None:
    spec = SPEC.model_copy(update={"kind": TaskKind.GENERATION, "labels": ()})
    assert list(parts(Measures(), spec)) == ["near_copies", "weights", "personal_data"]
    many = tuple(VoterShift(Voter("user", f"u{n}"), 9, 9, 9, ()) for n in range(MAX_ROWS + 1))
    assert len(rows(parts(Measures(shifts=many))["poisoning"])) == MAX_ROWS
