"""A long text is redacted slice by slice: nothing is cut at the end of one, nothing lost, and no slice takes long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.privacy.redaction import MAX_SLICE, RedactedSlice, Redactor, Rules, TextSlice, slice_from

RULES = Rules(names=False)
EMAIL = "maria.gonzalez.of.the.accounts.department@mail.example.com"


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(b"k" * 32)


def sliced(redactor: Redactor, text: str, rules: Rules = RULES) -> list[RedactedSlice]:
    results, position = [], 0
    while position < len(text):
        results += redactor.redact_slices([slice_from(text, position)], rules)
        assert results[-1].end > position
        position = results[-1].end
    return results


@pytest.mark.parametrize(
    ("unit", "blank"),
    [("x", ";"), (";", ";"), (" ", " "), ("word ", " "), ("A sentence. ", " "), ("line\n", " "), ("text\n\n", " ")],
)
def test_personal_data_at_the_end_of_a_slice_is_replaced_whole(redactor: Redactor, unit: str, blank: str) -> None:
    for offset in range(-80, 20, 3):
        before = (unit * MAX_SLICE)[: MAX_SLICE + offset] + blank
        after = blank + unit * 10
        results = sliced(redactor, before + EMAIL + after)
        text = "".join(result.text for result in results)
        assert text.startswith(before) and text.endswith(after)
        assert "gonzalez" not in text and "@" in text
        assert sum(result.count for result in results) == 1


@given(st.text(max_size=500), st.integers(1, 400))
def test_a_text_without_personal_data_stays_whole(text: str, repeats: int) -> None:
    text = text.replace("@", "").translate({ord(digit): "x" for digit in "0123456789"}) * repeats
    assert "".join(result.text for result in sliced(Redactor(b"k" * 32), text, Rules(enabled=False))) == text


@pytest.mark.parametrize(
    ("unit", "end"), [("Some words. ", ". "), ("a line\n", "\n"), ("Text. More.\n\n", "\n\n"), ("word ", " ")]
)  # fmt: skip
def test_a_slice_ends_where_a_paragraph_a_line_a_sentence_or_a_word_does(unit: str, end: str) -> None:
    text = unit * (3 * MAX_SLICE // len(unit))
    part = slice_from(text, 0)
    assert text[: part.end].endswith(end)
    assert MAX_SLICE // 2 < part.end <= MAX_SLICE


def test_what_stands_before_a_slice_is_a_cue_and_stays(redactor: Redactor) -> None:
    cue = "phone: "
    (result,) = redactor.redact_slices([TextSlice(f"{cue}4155550132", len(cue), len(cue) + 10)], RULES)
    assert (len(result.text), result.count) == (10, 1)
    (alone,) = redactor.redact_slices([TextSlice("4155550132", 0, 10)], RULES)
    assert (alone.text, alone.count) == ("4155550132", 0)


def test_a_slice_of_a_short_text_is_what_the_redactor_makes_of_the_text(redactor: Redactor) -> None:
    text = f"Write to {EMAIL} or call +1 415-555-0132."
    (whole,) = redactor.redact([text], RULES)
    (part,) = redactor.redact_slices([slice_from(text, 0)], RULES)
    assert (part.text, part.count, part.kinds) == (whole.text, whole.count, whole.kinds)
