from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.tasks import TaskKind, TaskSpec
from shared.answers import answer_form, form_of_kind
from shared.grading.grade import RIGHT
from shared.grading.json_values import read_json, same_json
from shared.grading.overlap import rouge_l
from shared.grading.text import exact_match, token_f1, words

LABELS = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": ["a", "b"]}
)
FREE = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})


def scored_by(metric: str) -> TaskSpec:
    return TaskSpec.model_validate({**FREE.model_dump(), "evaluation": {"text_metric": metric}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("  The REFUND, is due! ", "the refund is due"),
        ('{"b": 1, "a": [2]}', '{"a":[2],"b":1.0}'),
        ("It costs -5 euros.", "it costs -5 euros"),
        ("...", "..."),
    ],
)
def test_texts_that_say_the_same_match(answer: str, expected: str) -> None:
    assert exact_match(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"amount": -5}', '{"amount": 5}'),
        ("-5", "5"),
        ("It costs -5 euros", "It costs 5 euros"),
        ("1.5", "15"),
        ('{"a": 1 "b": 2}', '{"a": 1, "b": 2}'),
        ('{"a": 1', '{"a": 1}'),
        ('```json\n{"a": 1}\n```', '{"a": 1}'),
        ('{"a": 1, "a": 1}', '{"a": 1}'),
        ('{"a": true}', '{"a": 1}'),
        ('{"a": "1"}', '{"a": 1}'),
        ("a < b", "a > b"),
        ("...", "!"),
        ("", "yes"),
    ],
)
def test_texts_that_differ_in_what_they_say_do_not_match(answer: str, expected: str) -> None:
    assert not exact_match(answer, expected)
    assert not exact_match(expected, answer)
    assert not answer_form(FREE).grade(expected, answer).right


@given(JSON)
def test_a_json_value_equals_itself_and_no_value_that_is_put_into_a_list(value: object) -> None:
    assert same_json(value, value)
    assert not same_json(value, [value])


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a":1}{"a":1}', "Here: {}", "[" * 100_000, ""])
def test_what_a_strict_parser_refuses_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(text)


def test_garbage_scores_nothing_and_a_good_answer_most() -> None:
    expected = "the refund is due"
    assert token_f1("the refund was due", expected) == pytest.approx(0.75)
    assert answer_form(FREE).grade(expected, "the refund was due").score == pytest.approx(0.75)
    assert answer_form(FREE).grade(expected, "zx qv zx").score == 0.0
    assert answer_form(FREE).grade(expected, "The refund is due.").score == 1.0
    assert answer_form(FREE).grade(expected, None).score == 0.0


def test_a_label_is_right_or_wrong_as_it_is_written() -> None:
    assert answer_form(LABELS).grade("a", " a ").right
    assert not answer_form(LABELS).grade("a", "A").right
    assert answer_form(LABELS).grade("a", "b").score == 0.0


CALL = '[{"name":"find","arguments":"{\\"n\\":1,\\"m\\":[2]}"}]'


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('[{"name":"find","arguments":"{\\"m\\": [2.0], \\"n\\": 1}"}]', True),
        ('[{"arguments":"{\\"n\\":-1,\\"m\\":[2]}","name":"find"}]', False),
        ('[{"name":"find","arguments":"{\\"n\\":1,\\"m\\":[2]"}]', False),
        ('[{"name":"seek","arguments":"{\\"n\\":1,\\"m\\":[2]}"}]', False),
        (CALL[:-1] + "," + CALL[1:], False),
        ("I will look. \n" + CALL, False),
    ],
)
def test_generated_tool_calls_are_compared_by_function_and_arguments(answer: str, right: bool) -> None:
    assert answer_form(FREE).grade(CALL, answer).right is right


@pytest.mark.parametrize("metric", ["rouge_1", "rouge_2", "rouge_l", "token_f1", "exact_match"])
@pytest.mark.parametrize(
    ("expected", "given"),
    [
        (CALL, CALL.replace("find", "delete")),
        (CALL, CALL.replace("1", "7")),
        (f"I will look.\n{CALL}", "I will look."),
        (f"I will look.\n{CALL}", f"I will look.\n{CALL.replace('1', '7')}"),
        ("I will look.", f"I will look.\n{CALL}"),
    ],
)
def test_generated_text_with_other_calls_is_worth_nothing_however_alike_it_is(
    metric: str, expected: str, given: str
) -> None:
    assert answer_form(scored_by(metric)).grade(expected, given).score == 0.0


def test_beside_the_right_calls_the_text_is_scored_however_the_calls_are_spelled() -> None:
    spelled = '[{"arguments": "{\\"m\\": [2.0], \\"n\\": 1}", "name": "find"}]'
    expected = f"I will look.\n{CALL}"
    assert answer_form(FREE).grade(expected, f"I will look.\n{spelled}") == RIGHT
    other, plain = (answer_form(FREE).grade(expected, f"Let us see.\n{call}") for call in (spelled, CALL))
    assert 0.0 < other.score == plain.score < 1.0
    assert 0.0 < answer_form(FREE).grade(expected, spelled).score < 1.0
    assert 0.0 < answer_form(FREE).grade(CALL, f"I will look.\n{spelled}").score < 1.0


def test_parallel_calls_may_be_in_any_order() -> None:
    one, two = '{"name":"a","arguments":"{}"}', '{"name":"b","arguments":""}'
    assert answer_form(FREE).grade(f"[{one},{two}]", f"[{two},{one}]").right
    assert not answer_form(FREE).grade(f"[{one},{two}]", f"[{one},{one}]").right


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (" Refund", "refund", True),
        ("refund", "cancel", False),
        ("It is late.", "it is  late.", True),
        ("It is late.", "it is late", False),
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ('{"a": "x"}', '{"a": "X"}', False),
        ('{"a": 1}', '{"a": 1', False),
    ],
)
def test_layout_and_case_do_not_make_an_answer_another_one(one: str, other: str, same: bool) -> None:
    assert form_of_kind(TaskKind.GENERATION).same(one, other) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (f"I will look.\n{CALL}", CALL, True),
        (f"I will look.\n{CALL}", f"Let us see.\n{CALL}", True),
        (f"I will look.\n{CALL}", CALL.replace("1", "7"), False),
        (f"I will look.\n{CALL}", "I will look.", False),
        ("I will look.", "Let us see.", False),
    ],
)
def test_where_calls_are_asked_for_the_text_beside_them_makes_no_other_answer(one: str, other: str, same: bool) -> None:
    assert form_of_kind(TaskKind.TOOLS).same(one, other) is same
    assert not form_of_kind(TaskKind.GENERATION).same(one, other)


@pytest.mark.parametrize(
    ("text", "separated"),
    [
        ("मैं घर जा रहा हूँ।", ["मैं", "घर", "जा", "रहा", "हूँ", "।"]),
        ("வணக்கம் நண்பரே!", ["வணக்கம்", "நண்பரே"]),
        ("كَتَبَ الوَلَدُ", ["كَتَبَ", "الوَلَدُ"]),
        ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
        ("ශ්\u200dරී ලංකාව", ["ශ්\u200dරී", "ලංකාව"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("पृष्ठ २५ है, की-5", ["पृष्ठ", "२५", "है", "की", "-", "5"]),
        ("\U0001e900\U0001e944\U0001e902 \U0001e903", ["\U0001e922\U0001e944\U0001e924", "\U0001e925"]),
        ("q\u0307 w", ["q\u0307", "w"]),
    ],
)
def test_a_word_keeps_its_combining_marks_and_joiners(text: str, separated: list[str]) -> None:
    assert words(text) == [unicodedata.normalize("NFC", word) for word in separated]


def test_unrelated_sentences_of_a_script_with_vowel_signs_share_nothing() -> None:
    given, expected = "मैं बाज़ार जाता हूँ", "कृपया अपनी रसीद भेजें"
    assert token_f1(given, expected) == 0.0
    assert rouge_l(given, expected) == 0.0
    assert rouge_l("मैं बाज़ार जाता हूँ", "मैं दुकान जाता हूँ") == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("我的包裹在哪里？我想退款。", ["我的包裹在哪里", "？", "我想退款", "。"]),
        ("荷物はどこですか", ["荷物はどこですか"]),
        ("ที่นี่", ["ท", "ี", "่", "น", "ี", "่"]),
    ],
)
def test_scripts_that_do_not_separate_words_are_cut_at_punctuation_and_thai_at_its_marks(
    text: str, parts: list[str]
) -> None:
    assert words(text) == parts


@pytest.mark.parametrize("text", ["Café crème", "Ǻ", "각", "ที่ปูุ่", "ᾴ ΐ ǰ"])
def test_the_unicode_form_of_a_text_makes_no_difference(text: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert words(composed) == words(decomposed)
    assert exact_match(composed, decomposed)
    assert rouge_l(composed, decomposed) == token_f1(composed, decomposed) == 1.0
    assert form_of_kind(TaskKind.GENERATION).same(composed, decomposed)
    one, other = (json.dumps({"a": [each]}, ensure_ascii=escaped) for each, escaped in zip(
        (composed, decomposed), (True, False), strict=True
    ))  # fmt: skip
    assert exact_match(one, other)
    assert form_of_kind(TaskKind.EXTRACTION).same(one, other)
    calls = (f'[{{"name":"find","arguments":{json.dumps(each)}}}]' for each in (one, other))
    said, repeated = (f"{each}\n{call}" for each, call in zip((composed, decomposed), calls, strict=True))
    assert form_of_kind(TaskKind.GENERATION).same(said, repeated)
    assert answer_form(FREE).grade(said, repeated).right


def test_broken_json_is_the_same_in_either_unicode_form() -> None:
    composed, decomposed = (unicodedata.normalize(form, '{"a": "é') for form in ("NFC", "NFD"))
    assert exact_match(composed, decomposed)


def test_signs_and_marks_still_tell_answers_apart() -> None:
    assert not exact_match("कि", "की")
    assert not exact_match("resume", "résumé")
    assert not form_of_kind(TaskKind.GENERATION).same("résume", "résumé")
    assert not same_json({"e\u0301": 1}, {"é": 1})
