"""Near-duplicates: which texts count as the same, and that grouping never separates a pair."""

from __future__ import annotations

import json
import random
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.model.near_duplicates import band_keys, group_near_duplicates, near_texts
from shared.model.sketches import MAX_SHINGLES, Sketch, Sketches, jaccard, sketch_folded, sketch_texts
from shared.model.templates import Templates, find_templates
from shared.model.texts import fold, normalise, text_hash
from tests.near_duplicates import NearDuplicates

WORDS = ("card", "refund", "please", "where", "my", "is", "delivery", "late", "cancel", "invoice", "the", "again")
SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


def similarity(left: str, right: str) -> float:
    one, other = sketch_texts([left, right], Templates())
    return jaccard(one.shingles, other.shingles)


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


def test_a_typo_makes_a_near_duplicate_and_another_question_does_not() -> None:
    index = NearDuplicates(["My card has still not arrived after two weeks"], similarity=0.7)
    assert index.contains("my card has still not arived after two weeks!")
    assert not index.contains("How do I cancel my subscription before it renews?")


def test_an_index_knows_its_own_texts_and_an_empty_one_none() -> None:
    assert NearDuplicates(["Hi!", "hello"], 0.9).contains("hi")
    assert len(NearDuplicates(["Hi!", "hello"])) == 2
    assert not NearDuplicates([]).contains("hi")


def test_a_similarity_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="similarity"):
        NearDuplicates([], similarity=0.0)


def test_a_chain_of_near_duplicates_is_one_group() -> None:
    sentence = "please tell me where the refund for my last order is because i am waiting"
    words = sentence.split()
    chain = [" ".join(words[i : i + 12]) for i in range(4)]
    assert similarity(chain[0], chain[3]) < 0.8
    assert group_near_duplicates([*chain, "something else entirely"], 0.8) == [0, 0, 0, 0, 4]


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_similarity_is_that_of_the_texts_runs_of_four_characters(left: str, right: str) -> None:
    def runs(text: str) -> set[str]:
        clean = fold(text).ljust(4, "\0")
        return {clean[i : i + 4] for i in range(len(clean) - 3)}

    expected = len(runs(left) & runs(right)) / len(runs(left) | runs(right))
    assert similarity(left, right) == pytest.approx(expected)


def test_a_long_text_takes_at_most_five_kilobytes() -> None:
    (sketch,) = sketch_texts([" ".join(str(number * 7919) for number in range(5_000))], Templates())
    assert len(sketch.to_bytes()) <= 5_000


def test_a_sketch_reads_back_as_it_was_stored() -> None:
    for sketch in sketch_texts(["hi", "where is my card", "a long text " * 40], Templates()):
        again = Sketch.from_bytes(sketch.to_bytes())
        assert np.array_equal(sketch.shingles, again.shingles)
        assert np.array_equal(sketch.typos, again.typos)


@settings(max_examples=25)
@given(st.lists(SENTENCE, max_size=25), st.sampled_from((0.5, 0.6, 0.8, 0.95)))
def test_texts_at_the_given_similarity_are_in_one_group(texts: list[str], at_least: float) -> None:
    groups = group_near_duplicates(texts, at_least)
    for i in range(len(texts)):
        for j in range(i):
            if similarity(texts[i], texts[j]) >= at_least:
                assert groups[i] == groups[j]


@settings(max_examples=15)
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


@pytest.mark.parametrize(
    "question", ["where is my card", "how do i top up my account", "why was my card declined at the atm today"]
)
@pytest.mark.parametrize("place", [1, 5, 12])
def test_a_typo_in_a_short_text_makes_a_near_duplicate(question: str, place: int) -> None:
    before, letter, after = question[:place], question[place], question[place + 1 :]
    swapped = f"{before}{after[0]}{letter}{after[1:]}"
    for typo in (swapped, f"{before}q{after}", f"{before}{after}", f"{before}q{letter}{after}", question.upper() + "!"):
        assert NearDuplicates([question], 0.95).contains(typo)
        assert near_texts([question, typo], 0.95).near(0).tolist() == [1]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("send me 5 euros", "send me 6 euros"),
        ("what is 7 + 12", "what is 7 - 12"),
        ("我要买这个东西请你帮我", "我要卖这个东西请你帮我"),
    ],
)
def test_another_digit_sign_or_ideograph_is_no_typo(left: str, right: str) -> None:
    assert not NearDuplicates([left], 0.8).contains(right)


TEMPLATE = (
    "You get a passage of our handbook and a question of a customer. Answer it in two sentences at most, and do not "
    "invent anything. Passage: cards arrive within five working days; abroad it takes up to three weeks. Express "
    "delivery costs ten euros and cannot be cancelled once the card is printed.\n\n"
)
WORDS_OF_QUESTIONS = (
    "card",
    "refund",
    "fee",
    "transfer",
    "limit",
    "exchange",
    "atm",
    "top up",
    "identity",
    "pin",
    "app",
    "gift",
)


def questions(count: int) -> list[str]:
    rng = np.random.default_rng(1)
    return [f"{' '.join(rng.choice(WORDS_OF_QUESTIONS, 6))} {number}" for number in range(count)]


@pytest.mark.parametrize(
    "layout", ["{t}Question: {q}", "{q}\n{t}", "{t}Question: {q}\nAnswer with one word, please, or with two."]
)
def test_different_questions_behind_one_long_template_are_not_one_group(layout: str) -> None:
    asked = questions(120)
    alone = group_near_duplicates(asked, 0.8)
    behind = group_near_duplicates([layout.format(t=TEMPLATE, q=question) for question in asked], 0.8)
    assert len(set(behind)) >= 0.95 * len(set(alone))
    assert len(set(alone)) > 100


def test_the_same_question_behind_a_template_is_a_near_duplicate() -> None:
    texts = [f"{TEMPLATE}Question: {question}" for question in questions(40)]
    index = NearDuplicates(texts, 0.8)
    assert index.contains(texts[7].replace("Question: ", "Question:  "))
    assert not index.contains(f"{TEMPLATE}Question: may I pay with my phone abroad?")


@pytest.mark.parametrize("count", [10, 40, 600])
def test_copies_of_one_long_text_with_typos_here_and_there_are_no_questions_behind_a_template(count: int) -> None:
    rng = np.random.default_rng(2)
    copies = []
    for _ in range(count):
        letters = list(TEMPLATE)
        for place in rng.integers(0, len(letters), len(letters) // 50):
            letters[place] = rng.choice(list("abcdefghijklmnopqrstuvwxyz"))
        copies.append("".join(letters))
    assert not find_templates(list(map(fold, copies))).slots
    assert not find_templates([f"{fold(TEMPLATE)} order {number}" for number in range(count)]).slots


def test_texts_that_are_much_longer_than_a_sketch_are_compared_by_a_sample() -> None:
    rng = np.random.default_rng(3)
    words = [" ".join("".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(3_000)) for _ in range(2)]
    index = NearDuplicates(words[:1], 0.8)
    assert index.contains(words[0][:-900])
    assert not index.contains(words[1])
    assert not index.contains(words[0][: len(words[0]) // 2] + words[1][len(words[1]) // 2 :])


def test_texts_that_are_sketched_together_have_the_sketches_that_each_has_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In portions of seven: short ones with their typos, ones behind a template, one of which only a sample counts."""
    monkeypatch.setattr("shared.model.sketches._TEXTS", 7)
    rng = np.random.default_rng(4)
    long = " ".join("".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(400))
    behind = [f"{TEMPLATE}Question: {question}" for question in questions(30)]
    texts = [fold(text) for text in (*questions(20), "hi", "", long, *behind, long[:-9], "एक सवाल")]
    templates = find_templates(texts)
    portions = list(sketch_folded(texts, templates))
    assert [len(portion) for portion in portions] == [7] * (len(texts) // 7) + [len(texts) % 7]
    together = [sketch for portion in portions for sketch in portion]
    for text, sketch in zip(texts, together, strict=True):
        ((alone,),) = sketch_folded([text], templates)
        assert sketch.to_bytes() == alone.to_bytes()
    assert len(together[22].shingles) == MAX_SHINGLES
    assert len(together[25].shingles) < 100, "behind the template"
    assert all(np.all(np.diff(sketch.shingles.astype(np.int64)) > 0) for sketch in together)


@given(st.text(st.sampled_from("ab -\t\u00a0C."), max_size=12))
def test_one_line_is_normalised_as_a_text_of_several(text: str) -> None:
    assert normalise(f"{text}\n") == normalise(text)


@pytest.mark.parametrize(("similarity", "words"), [(0.5, 14), (0.8, 24), (0.8, 5)])
def test_a_near_duplicate_among_some_texts_is_found_wherever_it_stands_in_a_bucket(
    similarity: float, words: int
) -> None:
    """Texts of few words share buckets with many others, most of which are not near: each pair is the judge.

    Of the third kind are short ones, which are near by a typo.
    """
    rng = np.random.default_rng(6)
    texts = [" ".join(rng.choice(WORDS_OF_QUESTIONS, words)) for _ in range(250)]
    for number in range(0, 250, 5):
        place = int(rng.integers(0, len(texts[number]) - 2))
        texts.append(f"{texts[number][:place]}z{texts[number][place + 1 :]}")
    order = rng.permutation(len(texts)).tolist()
    index = near_texts([texts[number] for number in order], similarity)
    among = rng.random(len(texts)) < 0.4
    near = {text: {other for other in index.near(text).tolist() if among[other]} for text in range(len(texts))}
    found = index.nearest_of(range(len(texts)), among)
    assert found.keys() == {text for text, others in near.items() if others}
    assert all(other in near[text] for text, other in found.items())
    assert 30 < len(found) < len(texts)


def test_the_one_near_duplicate_behind_dozens_of_texts_in_the_same_buckets_is_found() -> None:
    """All begin alike, and so share buckets; with their long ends only the first and the last are near."""
    rng = np.random.default_rng(7)
    ends = ["".join(rng.choice(list("bcdfghjklmnpqrst"), 6 if n in (0, 61) else 22)) for n in range(62)]
    index = near_texts(
        [f"why was my transfer to a friend declined twice on monday, please, {end}" for end in ends], 0.8
    )
    assert index.nearest_of([0], np.ones(62, dtype=bool)) == {0: 61}
    assert index.nearest_of([0], np.arange(62) < 61) == {}


def test_planted_near_copies_are_found() -> None:
    """Copies of real questions with one typo, two neighbours swapped, or other case: the benchmark has all of them."""
    rng = np.random.default_rng(4)
    originals = [f"{' '.join(rng.choice(WORDS_OF_QUESTIONS, rng.integers(4, 12)))} {number}?" for number in range(300)]
    copies = []
    for text in originals:
        place = int(rng.integers(0, len(text) - 2))
        copies.append(text[:place] + text[place + 1] + text[place] + text[place + 2 :])
        copies.append(text.upper())
        letters = list(text)
        for spot in rng.integers(0, len(text) - 5, max(1, len(text) // 50)):
            letters[spot] = "z"
        copies.append("".join(letters))
    index = near_texts([*originals, *copies], 0.8)
    found = [{3 * n + len(originals) + kind for kind in range(3)} & set(index.near(n).tolist()) for n in range(300)]
    assert sum(map(len, found)) >= 0.95 * len(copies)


@pytest.mark.parametrize("at_least", [0.5, 0.8, 0.95])
def test_pairs_just_above_the_similarity_are_not_missed(at_least: float) -> None:
    rng = np.random.default_rng(5)
    originals = ["".join(rng.choice(list("abcdefghijklmnopqrst"), 203)) for _ in range(400)]
    kept = int(200 * at_least) + 3 + 1
    index = near_texts([*originals, *(text[:kept] for text in originals)], at_least)
    assert all(index.near(number).tolist() == [number + 400] for number in range(400))


def test_texts_share_as_many_min_hashes_as_shingles_also_where_those_are_near_each_other() -> None:
    """Shingles that differ in a digit are. A permutation that is only linear keeps them so."""
    starts = range(0, 100, 4)
    sketches = [Sketch(np.arange(start, start + 80, dtype=np.uint32), np.zeros(0, np.uint64)) for start in starts]
    keys = band_keys(Sketches.of(sketches), 0.05)  # So low that each of these bands is one MinHash.
    assert keys.shape[1] > 200
    errors = [
        float((keys[a] == keys[b]).mean()) - jaccard(sketches[a].shingles, sketches[b].shingles)
        for a, b in combinations(range(len(sketches)), 2)
    ]
    assert np.sqrt(np.mean(np.square(errors))) < 0.04, "chance alone gives at most 0.03"


def test_one_long_label_costs_no_memory_for_each_text() -> None:
    """A set of two hundred labels has 8,000 characters, and an array of texts is as wide as its longest one."""
    index = near_texts([f"question {number} of a long afternoon" for number in range(2_000)], 0.8)
    labels = ["a"] * 1_999 + ["x" * 8_000]
    peaks = []
    for each in (["a"] * 2_000, labels):
        tracemalloc.start()
        index.pairs(each)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 10e6


LETTERS = "abcdefghijklmnopqrstuvwxyz"
WRAPPED = (
    "You are the assistant of a bank. Answer the customer's question in a few friendly words, and never promise what "
    "the bank does not do. If you cannot tell what is meant, ask. The question of the customer is: {}"
)


BEGINNINGS = (
    "do you accept a card of", "how do I change my", "why was I charged for", "where can I find the",
    "I lost my card in", "when will I get the", "is it possible to have", "please tell me about",
    "what is the fee for a", "can I pay with a",
)  # fmt: skip


@pytest.mark.parametrize("beginnings", [2, 3, 10])
def test_hundreds_of_questions_behind_a_template_are_as_many_as_without(beginnings: int) -> None:
    """Many questions begin alike, and what they begin with counted as template: of the rest too little was left, and
    texts that are nearly all template were one group."""
    chance = random.Random(7)
    texts = [f"{begin} {''.join(chance.choices(LETTERS, k=7))}" for begin in BEGINNINGS[:beginnings] for _ in range(60)]
    plain, wrapped = (len(set(group_near_duplicates(each, 0.8))) for each in (texts, [*map(WRAPPED.format, texts)]))
    assert plain == len(texts)
    assert wrapped >= 0.98 * plain


def test_a_typo_is_found_behind_a_template_as_without() -> None:
    chance = random.Random(7)
    words = ["".join(chance.choices(LETTERS, k=6)) for _ in range(400)]
    questions = [" ".join(chance.sample(words, 4)) for _ in range(60)]
    twins = [text[:place] + "q" + text[place + 1 :] for text in questions for place in [chance.randrange(8, 20)]]
    for texts in ([*questions, *twins], [WRAPPED.format(text) for text in (*questions, *twins)]):
        groups = group_near_duplicates(texts, 0.8)
        together = sum(groups[number] == groups[number + 60] for number in range(60))
        assert together >= 58
        assert len(set(groups)) >= 58


def test_a_near_copy_with_another_label_is_found_among_hundreds_that_are_only_alike() -> None:
    """Texts of one pattern share buckets with nearly all others, of which few are near."""
    chance = random.Random(3)
    merchants, days = ("Shell", "Tesco", "Amazon", "Boots", "Ikea"), ("Monday", "Tuesday", "Saturday", "Sunday")
    states = ("pending", "declined", "reverted", "blocked", "missing", "refunded")
    texts, labels = [], []
    for _ in range(600):
        state = chance.choice(states)
        amount, merchant, day = 10 * chance.randint(1, 99), chance.choice(merchants), chance.choice(days)
        texts.append(f"My card payment of {amount} pounds to {merchant} on {day} is still shown as {state}")
        labels.append(state if chance.random() < 0.9 else chance.choice(states))
    index = near_texts(texts, 0.8)
    other = {n: [m for m in index.near(n).tolist() if labels[m] != labels[n]] for n in range(len(texts))}
    in_conflict = {n for n, found in other.items() if found}
    assert len(in_conflict) > 50
    found = index.pairs(labels)
    assert set(found.ravel().tolist()) == in_conflict
    assert all(labels[a] != labels[b] and b in other[a] for a, b in found.tolist())
    unlabelled = [None if n % 2 else label for n, label in enumerate(labels)]
    assert not (index.pairs(unlabelled) % 2).any()
