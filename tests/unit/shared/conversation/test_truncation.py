"""A text that is too long for an event is cut where nothing is torn apart that the redaction would find."""

from __future__ import annotations

import re

import pytest

from shared.conversation.truncation import cut_call, cut_text

_LEFT_OUT = re.compile(r"\n\[… (\d+) characters left out …\]\n")


def halves(text: str, max_bytes: int) -> tuple[str, str]:
    """What is kept of the beginning and of the end; what the mark says of the rest is checked."""
    cut = cut_text(text, max_bytes)
    found = _LEFT_OUT.search(cut)
    assert found is not None
    head, tail = cut[: found.start()], cut[found.end() :]
    assert (text.startswith(head), text.endswith(tail)) == (True, True)
    assert int(found[1]) == len(text) - len(head) - len(tail)
    assert max_bytes // 2 < len(cut.encode()) <= max_bytes
    return head, tail


@pytest.mark.parametrize("between", [" ", "\n", ". "])
@pytest.mark.parametrize("shift", range(0, 40, 3))
def test_an_address_is_kept_whole_or_not_at_all(between: str, shift: int) -> None:
    words = [("jane.roe@example.org", "of", "the")[n % 3] for n in range(4_000)]
    head, tail = halves("x" * shift + " " + between.join(words), 8_000)
    assert set(re.split(r"\W*\s\W*", head.strip(". \n"))) <= {"jane.roe@example.org", "of", "the", "x" * shift, ""}
    assert set(re.split(r"\W*\s\W*", tail.strip(". \n"))) <= {"jane.roe@example.org", "of", "the"}


def test_a_number_in_groups_is_kept_whole_where_lines_or_sentences_are_not_long() -> None:
    for end in ("\n", ". "):
        head, tail = halves(end.join(["Card 4111 1111 1111 1111, call +49 170 1234567"] * 2_000), 9_000)
        assert head.endswith("1234567" + end)
        assert tail.startswith("Card 4111 1111 1111 1111")


def test_a_text_without_blanks_is_cut_all_the_same() -> None:
    head, tail = halves("x" * 50_000, 5_000)
    assert len(head) + len(tail) > 4_800


def test_a_conversation_is_cut_between_sentences_and_fits() -> None:
    sentence = "Write to jane.roe@example.org or call +49 170 1234567. "
    call = {
        "messages": [{"role": "user", "content": sentence * 3_000}, {"role": "user", "content": "Short. " + sentence}]
    }
    cut = cut_call(call, 50_000)
    assert cut["truncated"]
    assert cut["messages"][1] == call["messages"][1]
    assert set(re.split(r"(?<=\. )", _LEFT_OUT.sub("", cut["messages"][0]["content"]))) == {sentence, ""}
