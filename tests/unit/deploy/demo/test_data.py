"""A CSV file is read, or refused with what to change, and split into parts that share no near-duplicate."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from deploy.demo.data.rows import DataError, DataRow, LoopData, read_rows
from deploy.demo.data.split import SIMILARITY, Quota, split_rows
from deploy.demo.data.task_file import (
    DATA,
    FEW_QUESTIONS_TRAINING,
    OWN_DATA_EPOCHS,
    SYSTEM_PROMPT,
    apply_loop_task,
    free_name,
    name_for,
)
from deploy.demo.settings import DataOptions, Fault
from schemas.tasks import TaskKind, TaskSpec
from shared.model.near_copies import NearCopies, Question

THINGS = ("card", "parcel", "invoice", "password", "refund", "address", "discount", "subscription", "warranty", "sofa")
WHERE = (
    "Berlin",
    "Lagos",
    "Osaka",
    "Lima",
    "Oslo",
    "Cairo",
    "Quito",
    "Perth",
    "Dublin",
    "Hanoi",
    "Riga",
    "Accra",
    "Turin",
)
HOW = (
    "vanished overnight near",
    "was sent twice towards",
    "got wet and torn outside",
    "stays unpaid since my trip to",
    "seems locked after",
)


def rows(labels: int, each: int) -> tuple[DataRow, ...]:
    made = []
    for n in range(labels):
        texts = [
            f"{THINGS[(n + i) % 10]} {HOW[i % 5]} {WHERE[(i * 7 + n) % 13]} number {i * 7919 % 100003} q{n}"
            for i in range(each)
        ]
        made += [DataRow(text, f"label-{n}") for text in texts]
    return tuple(made)


def applied(
    folder: Path, name: str, labels: tuple[str, ...], questions: int = 0, fault: Fault | None = None
) -> TaskSpec:
    """The task of the user's own file with these labels."""
    data = LoopData(tuple(DataRow("text", label) for label in labels), labels, {})
    return apply_loop_task(folder, name, DataOptions(Path("mine.csv")), data, questions, fault)


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "data.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file: .*nowhere\.csv"):
        read_rows(tmp_path / "nowhere.csv", "text", "label")


def test_a_missing_column_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'category'; it has: text, kind"):
        read_rows(write(tmp_path, "text,kind\na,b\n"), "text", "category")


def test_an_empty_file_has_no_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has: none"):
        read_rows(write(tmp_path, ""), "text", "label")


def test_a_file_that_is_not_utf8_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not UTF-8") as error:
        read_rows(write(tmp_path, "text,label\ncafé,a\n", "latin-1"), "text", "label")
    assert "iconv" in error.value.way_out


def test_a_file_of_utf16_is_refused_with_the_conversion_that_it_needs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not UTF-8") as error:
        read_rows(write(tmp_path, "text,label\na,b\n", "utf-16"), "text", "label")
    assert "iconv -f UTF-16 " in error.value.way_out


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_file_with_other_signs_between_its_columns_is_told_from_one_without_the_column(
    tmp_path: Path, sign: str, name: str
) -> None:
    with pytest.raises(DataError, match="no column 'text', 'label'") as error:
        read_rows(write(tmp_path, f"text{sign}label\none, two{sign}b\n"), "text", "label")
    assert error.value.way_out == f"Its columns have {name} between them. Save it with commas."


def test_a_byte_order_mark_is_not_part_of_a_column_name(tmp_path: Path) -> None:
    data = read_rows(write(tmp_path, "\ufefftext,label\none thing,a\nanother,b\n"), "text", "label")
    assert data.labels == ("a", "b")


def test_one_label_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 1 label in column 'label'; two are needed"):
        read_rows(write(tmp_path, "text,label\na,x\nb,x\n"), "text", "label")


def test_a_label_as_long_as_a_text_hints_at_swapped_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a label has 300 characters") as error:
        read_rows(write(tmp_path, f"text,label\na,{'x' * 300}\n"), "text", "label")
    assert "column of the classes" in error.value.way_out


def test_dropped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    text = "text,label\n,a\nhello,\nsame,a\nsame,a\ntorn,a\ntorn,b\nfine,b\n" + "x" * 2001 + ",a\n"
    data = read_rows(write(tmp_path, text), "text", "label")
    assert [row.text for row in data.rows] == ["same", "fine"]
    assert data.dropped == {
        "empty text": 1, "empty label": 1, "text over 2,000 characters": 1, "same text with different labels": 2,
        "repeated text": 1,
    }  # fmt: skip


def test_the_most_frequent_labels_are_chosen(tmp_path: Path) -> None:
    lines = ["text,label"] + [f"question {n} of {n % 3},l{n % 3}" for n in range(9)] + ["one more,l2", "yet one,l1"]
    data = read_rows(write(tmp_path, "\n".join(lines)), "text", "label", 2)
    assert data.labels == ("l1", "l2")
    assert data.dropped["of a label that was not chosen"] == 3


def test_quoted_commas_and_line_breaks_are_read(tmp_path: Path) -> None:
    data = read_rows(write(tmp_path, 'label,text\na,"one, two\nthree"\nb,four\n'), "text", "label")
    assert data.rows[0].text == "one, two\nthree"


def test_too_few_rows_of_a_label_say_how_many_are_needed() -> None:
    data = LoopData(rows(2, 60), ("label-0", "label-1"), {})
    with pytest.raises(DataError, match=r"140 are needed: 40 for corrections, 50 live, 50 held out"):
        split_rows(data, seed=1)


def test_parts_are_disjoint_and_balanced_and_share_no_near_duplicate() -> None:
    data = LoopData(rows(10, 70), tuple(f"label-{n}" for n in range(10)), {})
    parts = split_rows(data, seed=1)
    assert 100 <= len(parts.held_out) <= 150
    assert len(parts.live) >= 100
    assert 350 <= len(parts.traffic) <= 400
    for part, rest in ((parts.held_out, parts.traffic + parts.live), (parts.live, parts.traffic)):
        index = NearCopies(SIMILARITY)
        for row in rest:
            index.add(Question(row.text))
        assert not any(index.contains(Question(row.text)) for row in part)


def test_a_near_duplicate_of_a_held_out_row_is_in_no_other_part() -> None:
    made = rows(4, 100)
    marked = tuple(DataRow(row.text, row.label, "heldout" if n % 4 == 1 else "traffic") for n, row in enumerate(made))
    copy = DataRow(marked[1].text + " !!", marked[1].label, "traffic")
    parts = split_rows(LoopData((*marked, copy), tuple(f"label-{n}" for n in range(4)), {}), seed=3)
    assert marked[1] in parts.held_out
    assert copy not in parts.traffic + parts.live


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    data = LoopData(rows(10, 70), tuple(f"label-{n}" for n in range(10)), {})
    assert split_rows(data, seed=1) == split_rows(data, seed=1)
    assert split_rows(data, seed=1) != split_rows(data, seed=2)


def test_the_shipped_data_is_enough_for_a_loop() -> None:
    data = read_rows(DATA[TaskKind.CLASSIFICATION], "text", "label")
    parts = split_rows(data, seed=20)
    assert len(data.labels) == 10
    assert {row.part for row in parts.held_out} == {"heldout"}
    assert "heldout" not in {row.part for row in (*parts.traffic, *parts.live)}
    assert len(parts.held_out) >= 100
    assert len(parts.live) >= 100


def test_a_higher_maximum_of_corrections_leaves_fewer_live_rows() -> None:
    data = LoopData(rows(10, 90), tuple(f"label-{n}" for n in range(10)), {})
    usual, more = split_rows(data, seed=1), split_rows(data, seed=1, corrections=60)
    for parts, maximum in ((usual, 40), (more, 60)):
        assert max(Counter(row.label for row in parts.traffic).values()) == maximum
    assert len(more.live) < len(usual.live)
    assert len(more.held_out) == len(usual.held_out)


@pytest.mark.parametrize(("labels", "corrections"), [(2, None), (2, 12), (4, None), (6, 12), (7, None), (10, None)])
def test_the_fewest_rows_that_are_taken_are_enough_to_train_on(
    labels: int, corrections: int | None, tmp_path: Path
) -> None:
    """Of two labels 24 rows were asked about, and the loop waited in vain for the 50 that a data set needs."""
    rules = applied(tmp_path, "mine", tuple(f"label-{n}" for n in range(labels))).dataset
    quota = Quota.of(labels, corrections)
    corrected = labels * quota.traffic[0]
    assert 0.9 * corrected * (1 - rules.eval_share) >= rules.min_examples
    assert 0.9 * corrected * rules.eval_share >= 10
    assert quota.traffic[0] <= quota.traffic[1]


@pytest.mark.parametrize("labels", [2, 3, 10, 30, 77, 100])
def test_the_held_out_part_has_100_to_150_rows_or_one_per_label(labels: int) -> None:
    quota = Quota.of(labels)
    assert 1 <= quota.held_out[0] <= quota.held_out[1]
    assert quota.held_out[1] * labels <= 150
    assert quota.held_out[1] * labels >= 77
    assert quota.live[0] * labels >= 100


@pytest.mark.parametrize(
    ("path", "name"),
    [("My Tickets (2026).csv", "my-tickets-2026"), ("banking77/train.csv", "banking77-train"), ("öäü.csv", "task")],
)
def test_a_task_is_named_after_its_file(path: str, name: str) -> None:
    assert name_for(DataOptions(Path("/data") / path)) == name


def test_a_name_that_was_used_gets_a_number() -> None:
    assert free_name("desk", {"desk", "desk-2"}) == "desk-3"
    assert free_name("desk", set()) == "desk"


def test_a_users_file_becomes_a_task_with_its_own_labels(tmp_path: Path) -> None:
    labels = ("yes: please", "no # thanks", "on")
    spec = applied(tmp_path, "mine", labels)
    assert spec.labels == labels
    assert spec.golden_set is None
    assert spec.system_prompt == SYSTEM_PROMPT
    assert FEW_QUESTIONS_TRAINING.items() <= spec.training.model_dump().items()
    many = applied(tmp_path, "many", labels, questions=5_000).training
    assert (many.epochs, many.dropout) == (OWN_DATA_EPOCHS, None)


def test_the_support_desk_is_applied_under_another_name_with_its_golden_set(tmp_path: Path) -> None:
    spec = apply_loop_task(tmp_path, "support-desk-2", DataOptions(), LoopData((), (), {}))
    assert spec.name == "support-desk-2"
    assert spec.golden_set is not None
    assert spec.golden_set.rows == 20
    assert (tmp_path / "support-desk-2.yaml").exists()


def test_people_are_asked_about_all_traffic_and_twice_as_often_where_noise_is_shown(tmp_path: Path) -> None:
    usual = applied(tmp_path, "forty", ("a", "b"), questions=1_200)
    assert usual.failures.review_budget_per_day >= 2 * 1_200
    assert usual.failures.overlap_share == 0.2
    noisy = applied(tmp_path, "noisy", ("a", "b"), questions=300, fault=Fault.NOISE)
    assert noisy.failures.overlap_share * 300 >= 1.3 * noisy.dataset.min_overlaps
    assert applied(tmp_path, "few", ("a", "b"), questions=60, fault=Fault.NOISE).failures.overlap_share == 1.0
