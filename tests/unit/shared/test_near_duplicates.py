"""Near-duplicates: which texts count as the same, and that grouping never separates a pair."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.model.near_duplicates import NearDuplicates, group_near_duplicates, jaccard, normalise, shingles, text_hash

WORDS = ("card", "refund", "please", "where", "my", "is", "delivery", "late", "cancel", "invoice", "the", "again")
SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Where is my card?", "where is my card"),
        ("Straße  gesperrt!", "STRASSE gesperrt"),
        ("ﬁne — thanks", "fine thanks"),
        ("a_b", "a b"),
    ],
)
def test_case_form_and_punctuation_are_ignored(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)
    assert text_hash(left) == text_hash(right)


def test_texts_of_punctuation_alone_differ() -> None:
    assert text_hash("???") != text_hash("!!!")


def test_a_typo_makes_a_near_duplicate_and_another_question_does_not() -> None:
    index = NearDuplicates(["My card has still not arrived after two weeks"], similarity=0.7)
    assert index.contains("my card has still not arived after two weeks!")
    assert not index.contains("How do I cancel my subscription before it renews?")


def test_an_added_text_is_contained() -> None:
    index = NearDuplicates(similarity=0.9)
    assert not index.contains("hi")
    index.add("Hi!")
    assert index.contains("hi")
    assert len(index) == 1


def test_a_similarity_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="similarity"):
        NearDuplicates(similarity=0.0)


def test_a_chain_of_near_duplicates_is_one_group() -> None:
    sentence = "please tell me where the refund for my last order is because i am waiting"
    words = sentence.split()
    chain = [" ".join(words[i : i + 12]) for i in range(4)]
    assert jaccard(shingles(chain[0]), shingles(chain[3])) < 0.8
    assert group_near_duplicates([*chain, "something else entirely"], 0.8) == [0, 0, 0, 0, 4]


@given(st.text(), st.text())
def test_the_similarity_is_that_of_the_texts_runs_of_four_characters(left: str, right: str) -> None:
    def runs(text: str) -> set[str]:
        clean = normalise(text).ljust(4, "\0")
        return {clean[i : i + 4] for i in range(len(clean) - 3)}

    expected = len(runs(left) & runs(right)) / len(runs(left) | runs(right))
    assert jaccard(shingles(left), shingles(right)) == pytest.approx(expected)


def test_a_long_text_takes_at_most_eight_bytes_a_character() -> None:
    text = " ".join(str(number * 7919) for number in range(5_000))
    assert shingles(text).nbytes <= 8 * len(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(SENTENCE, max_size=25), st.sampled_from((0.5, 0.6, 0.8, 0.95)))
def test_texts_at_the_given_similarity_are_in_one_group(texts: list[str], similarity: float) -> None:
    groups = group_near_duplicates(texts, similarity)
    pieces = [shingles(text) for text in texts]
    for i in range(len(texts)):
        for j in range(i):
            if jaccard(pieces[i], pieces[j]) >= similarity:
                assert groups[i] == groups[j]


@settings(max_examples=30, deadline=None)
@given(st.lists(SENTENCE, min_size=1, max_size=15), st.randoms(use_true_random=False))
def test_the_order_of_texts_does_not_change_the_groups(texts: list[str], random) -> None:  # type: ignore[no-untyped-def]
    def together(order: list[str]) -> set[frozenset[str]]:
        members: dict[int, set[str]] = {}
        for text, group in zip(order, group_near_duplicates(order, 0.8), strict=True):
            members.setdefault(group, set()).add(text)
        return {frozenset(group) for group in members.values()}

    shuffled = list(texts)
    random.shuffle(shuffled)
    assert together(texts) == together(shuffled)
