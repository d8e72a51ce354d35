"""Texts whose corrections have expired and that come again: a copy of what was held out is not trained on, and what was
trained on is not held out, whatever has changed meanwhile in what is compared of them."""

from __future__ import annotations

import pytest

from schemas.labels import CorrectionSubmitted
from schemas.tasks import TaskSpec
from tests.unit.dataset_builder.histories import (
    LABELS,
    Builds,
    correction,
    corrections,
    held_out,
    sentence,
    task,
    trained,
)

POLICY = (
    "Here is the policy of the shop in full: goods may be returned in thirty days, if they are unused, with the bill "
    "and in their box. Shipping is paid by us. Now answer this question of a customer as well as you can: "
)


def behind_policy(prefix: str, numbers: range, minute: int = 0) -> list[CorrectionSubmitted]:
    return [correction(f"{prefix}{n}", POLICY + sentence(n, 8), LABELS[n % 3], minute=minute + n) for n in numbers]


def come_again(rows: list[CorrectionSubmitted], names: set[str], change: str = "") -> list[CorrectionSubmitted]:
    """Return new predictions with the texts of these rows, with a word more."""
    return [
        correction(f"copy-{row.prediction_id}", row.call.messages[0].text + change, row.label or "", minute=5_000)
        for row in rows if row.prediction_id in names
    ]  # fmt: skip


def test_a_copy_of_a_held_out_text_is_not_trained_on_once_user_part_says_what_counts() -> None:
    rows = [correction(f"p{n}", f"{sentence(n + 9_000, 4)} <<{sentence(n)}>>", LABELS[n % 3]) for n in range(60)]
    builds = Builds()
    names = held_out(builds.build(rows))
    copies = come_again(rows, names)
    assert len(copies) == 12
    found = builds.build([*corrections(60, first=100), *copies], task(user_part="(?s)<<(.*)>>"))
    assert not any(row.prediction_id in trained(found) | held_out(found) for row in copies)


@pytest.mark.parametrize("change", ["", " please"])
def test_a_copy_of_a_held_out_text_is_not_trained_on_once_its_template_is_gone(change: str) -> None:
    rows = [*corrections(60), *behind_policy("t", range(200, 240))]
    builds = Builds()
    names = {name for name in held_out(builds.build(rows)) if name.startswith("t")}
    copies = come_again(rows, set(sorted(names)[:3]), change)
    found = builds.build([*corrections(60, first=400), *copies])
    assert len(copies) == 3
    assert not any(row.prediction_id in trained(found) | held_out(found) for row in copies)


def test_a_copy_of_a_held_out_text_is_not_trained_on_once_it_turns_out_to_be_behind_a_template() -> None:
    (alone,) = behind_policy("t", range(200, 201))
    seeds = [seed for seed in range(12) if "t200" in held_out(Builds().build([*corrections(30), alone], spec_of(seed)))]
    assert seeds
    for seed in seeds:
        builds = Builds()
        builds.build([*corrections(30), alone], spec_of(seed))
        later = [*behind_policy("q", range(300, 340)), *corrections(30, first=400), *come_again([alone], {"t200"})]
        assert "copy-t200" not in trained(builds.build(later, spec_of(seed)))


def spec_of(seed: int) -> TaskSpec:
    return task(seed=seed, eval_share=0.5)


def test_a_text_that_was_trained_on_is_not_held_out_when_it_comes_again() -> None:
    rows, builds = corrections(60), Builds()
    copies = come_again(rows, trained(builds.build(rows)))
    found = builds.build([*copies, *corrections(60, first=200)])
    assert len(copies) == 48
    assert {row.prediction_id for row in copies} <= trained(found)


def test_a_similarity_that_was_low_once_holds_for_what_was_held_out_and_for_nothing_else() -> None:
    rows, builds = corrections(60), Builds()
    names = held_out(builds.build(rows, task(near_copy_similarity=0.5)))
    longer = {name: next(row for row in rows if row.prediction_id == name) for name in names}
    alike = [
        correction(
            f"alike-{name}", f"{row.call.messages[0].text} {sentence(n + 7_000, 4)}", row.label or "", minute=900
        )
        for n, (name, row) in enumerate(sorted(longer.items()))
    ]
    pairs = [
        correction(f"{label}{n}", f"{sentence(n, 9)}{more}", label, minute=n)
        for n in range(1_000, 1_030)
        for label, more in ((LABELS[0], ""), (LABELS[1], f" {sentence(n + 7_777, 4)}"))
    ]
    found = builds.build([*rows, *alike, *pairs], task(near_copy_similarity=0.8))
    assert not any(row.prediction_id in trained(found) for row in alike), "what the version promised"
    placed = trained(found) | held_out(found)
    assert all(row.prediction_id in placed for row in pairs), "their labels differ, and so do the texts by now"
