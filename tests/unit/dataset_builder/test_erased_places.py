"""Who is forgotten between a build and its end leaves no place: neither who was answered nor who wrote the words."""

from __future__ import annotations

from datetime import datetime, timedelta

from services.dataset_builder.building.votes import UserCorrection, votes_of
from services.dataset_builder.pipeline import Inputs, build_dataset
from services.dataset_builder.storage.places import without_erased
from shared.privacy.erasure import ErasedSubjects
from tests.unit.dataset_builder.histories import NOON, correction, corrections, task

BUILT = NOON + timedelta(hours=1)


def word(name: str, author: str, text: str, minute: int = 0) -> UserCorrection:
    shared = correction(name, text, "refund", minute=minute).model_dump(include=set(UserCorrection.model_fields))
    fields = {**shared, "correction_id": f"{name}-{author}-{minute}", "user_hash": "answered", "author_hash": author}
    return UserCorrection.model_validate({**fields, "predicted_at": NOON})


def left(*words: UserCorrection, reviewed: tuple[str, ...] = (), **forgotten: datetime) -> set[str]:
    reviews = [correction(name, "it never came", "refund", minute=9, user="answered") for name in reviewed]
    places = build_dataset(Inputs(votes_of([*corrections(9), *reviews], words), task())).places
    erased = ErasedSubjects({("desk", person): at for person, at in forgotten.items()})
    return set(without_erased("desk", places, erased)) - {row.prediction_id for row in corrections(9)}


def test_a_row_that_only_a_forgotten_person_wrote_leaves_no_place() -> None:
    assert left(word("w", "bea", "it never came")) == {"w"}
    assert left(word("w", "bea", "it never came"), bea=BUILT) == set()
    assert left(word("w", "bea", "it never came"), answered=BUILT) == set()


def test_a_row_that_others_wrote_too_keeps_its_place() -> None:
    words = (word("w", "bea", "it never came"), word("w", "carl", "it never came"))
    assert left(*words, bea=BUILT) == {"w"}
    assert left(*words, bea=BUILT, carl=BUILT) == set()
    assert left(words[0], reviewed=("w",), bea=BUILT) == {"w"}


def test_what_a_person_wrote_after_the_request_to_be_forgotten_keeps_its_place() -> None:
    words = (word("w", "bea", "it never came"), word("w", "bea", "it never came", 30))
    assert left(*words, bea=NOON + timedelta(minutes=10)) == {"w"}
