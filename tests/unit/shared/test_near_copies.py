"""Near-copies: which texts count as the same, and that no pair is missed."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.conversation import Message, Role
from shared.model.near_copies import (
    MAX_SHINGLES,
    NearCopies,
    Question,
    Shingles,
    group_near_copies,
    jaccard,
    question_of,
    shingles,
)
from shared.model.texts import fold, normalise, text_hash

WORDS = ("card", "refund", "please", "where", "my", "is", "delivery", "late", "cancel", "invoice", "the", "again")

SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Where  is\tmy card?  ", "Where is my card?"),
        ("café", "cafe\u0301"),
        ("ﬁne", "fine"),
        ("ＡＢＣ　１２３", "ABC 123"),
        ("ｶﾞｿﾘﾝ", "ガソリン"),
        ("ﺳﻼﻡ", "سلام"),
        ("one\r\ntwo ", "one\ntwo"),
    ],
)
def test_texts_that_are_only_written_down_differently_are_equal(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)
    assert text_hash(left) == text_hash(right)


DIFFERENT = [
    (line["script"], *line["texts"])
    for line in map(json.loads, (Path(__file__).parent / "different_texts.jsonl").read_text("utf-8").splitlines())
]


def test_there_are_two_hundred_pairs_of_different_texts() -> None:
    assert len(DIFFERENT) >= 200
    assert {script for script, *_ in DIFFERENT} >= {"hindi", "thai", "arabic", "chinese", "japanese", "code"}


def test_different_texts_are_never_equal() -> None:
    for script, left, right in DIFFERENT:
        assert normalise(left) != normalise(right), (script, left, right)
        assert text_hash(left) != text_hash(right), (script, left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Where is my card?", "where is my card"),
        ("Straße  gesperrt!", "STRASSE gesperrt"),
        ("ﬁne, thanks", "fine thanks"),
        ("“Hello”", "hello"),
        ("你好。", "你好"),
    ],
)
def test_case_and_punctuation_around_words_do_not_make_texts_less_alike(left: str, right: str) -> None:
    assert fold(left) == fold(right)


def test_texts_of_punctuation_alone_differ() -> None:
    assert text_hash("???") != text_hash("!!!")
    assert fold("???") != fold("!!!")


@given(st.text(st.sampled_from("ab -\t\u00a0C."), max_size=12))
def test_one_line_is_normalised_as_a_text_of_several(text: str) -> None:
    assert normalise(f"{text}\n") == normalise(text)


def similarity(left: str, right: str) -> float:
    return jaccard(shingles(left), shingles(right))


def index_of(*texts: str, at_least: float = 0.8) -> NearCopies:
    index = NearCopies(at_least)
    for text in texts:
        index.add(Question(text))
    return index


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_similarity_is_that_of_the_texts_runs_of_four_characters(left: str, right: str) -> None:
    def runs(text: str) -> set[str]:
        clean = fold(text).ljust(4, "\0")
        return {clean[i : i + 4] for i in range(len(clean) - 3)}

    expected = len(runs(left) & runs(right)) / len(runs(left) | runs(right))
    assert similarity(left, right) == pytest.approx(expected)


def test_a_typo_makes_a_near_copy_and_another_question_does_not() -> None:
    index = index_of("My card has still not arrived after two weeks", at_least=0.7)
    assert index.contains(Question("my card has still not arived after two weeks!"))
    assert not index.contains(Question("How do I cancel my subscription before it renews?"))


def test_an_index_knows_its_own_texts_and_an_empty_one_none() -> None:
    assert index_of("Hi!", "hello").contains(Question("hi"))
    assert len(index_of("Hi!", "hello", "hi")) == 2
    assert not index_of().contains(Question("hi"))


def test_a_chain_of_near_copies_is_one_group() -> None:
    words = [
        "please",
        "tell",
        "me",
        "where",
        "the",
        "refund",
        "for",
        "my",
        "last",
        "order",
        "is",
        "because",
        "i",
        "am",
        "waiting",
    ]
    chain = [" ".join(words[i : i + 12]) for i in range(4)]
    assert similarity(chain[0], chain[3]) < 0.8
    assert group_near_copies([*chain, "something else entirely"], 0.8) == [0, 0, 0, 0, 4]


@settings(max_examples=15)
@given(st.lists(SENTENCE, max_size=25), st.sampled_from((0.7, 0.8, 0.95)), st.randoms(use_true_random=False))
def test_texts_at_the_given_similarity_are_in_one_group_whatever_their_order(
    texts: list[str], at_least: float, random: Random
) -> None:
    random.shuffle(texts)
    groups = group_near_copies(texts, at_least)
    for i, j in combinations(range(len(texts)), 2):
        if similarity(texts[i], texts[j]) >= at_least:
            assert groups[i] == groups[j]


def test_the_same_words_about_another_document_are_another_question_and_under_another_clock_the_same() -> None:
    rng = Random(3)
    documents = [" ".join(rng.choices(WORDS, k=60)) for _ in range(2)]
    index = NearCopies(0.8)
    index.add(Question("Summarise the document.", documents[0]))
    rules = "You work for a shop. Be kind, be brief, and answer in English. It is {} now."
    index.add(Question("where is my card", rules.format("12:04:59")))
    assert index.contains(Question("Summarise the document.", documents[0]))
    assert not index.contains(Question("Summarise the document.", documents[1]))
    assert not index.contains(Question("Summarise the document."))
    assert index.contains(Question("where is my card", rules.format("12:05:00")))


def test_the_own_part_is_the_last_message_of_the_user_or_what_the_task_marks() -> None:
    messages = [
        Message(role=Role.SYSTEM, content="Intent?"),
        Message(role=Role.SYSTEM, content="It is Monday in Lisbon."),
        Message(role=Role.USER, content="hello"),
        Message(role=Role.ASSISTANT, content="Hi!"),
        Message(role=Role.USER, content="Question: where is my card?"),
    ]
    rest = "It is Monday in Lisbon.\nhello\nHi!"
    assert question_of(messages, {"Intent?"}, None) == Question("Question: where is my card?", rest)
    assert question_of(messages, {"Intent?"}, "Question: (.*)") == Question("where is my card?")
    assert question_of(messages, {"Intent?"}, "Frage: (.*)") == question_of(messages, {"Intent?"}, None)


def test_shingles_read_back_as_they_were_stored() -> None:
    for question in (Question(""), Question("hi"), Question("where is my card", "Monday"), Question("long " * 900)):
        known = Shingles.of(question)
        again = Shingles.from_bytes(known.to_bytes())
        assert again.own.tolist() == known.own.tolist()
        assert again.context.tolist() == known.context.tolist()


def test_long_texts_are_compared_by_a_sample() -> None:
    rng = Random(3)
    long, other = (" ".join("".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(3_000)) for _ in range(2))
    index = index_of(long)
    assert len(shingles(long)) == MAX_SHINGLES
    assert index.contains(Question(long[:-900]))
    assert not index.contains(Question(other))
    assert not index.contains(Question(long[: len(long) // 2] + other[len(other) // 2 :]))


@pytest.mark.parametrize("at_least", [0.7, 0.8, 0.95])
def test_pairs_just_above_the_similarity_are_not_missed(at_least: float) -> None:
    rng = Random(5)
    originals = ["".join(rng.choices("abcdefghijklmnopqrst", k=203)) for _ in range(400)]
    kept = int(200 * at_least) + 3 + 1
    index = index_of(*originals, at_least=at_least)
    found = [list(index.near(Question(text[:kept]))) for text in originals]
    assert sum(near == [number] for number, near in enumerate(found)) >= 399
