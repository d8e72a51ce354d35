"""A conversation is shown as a conversation, with nothing in it that a browser would run."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from schemas.conversation import Answer, Call, Media, Message, Part, Role, ToolCall
from services.console.pages.conversation import CUT_ANSWER, CUT_CALL, answer, conversation
from services.console.pages.review import _draft, _sides
from shared.conversation import bounded_call
from tests.unit.console.fakes import FIND, question, ticket, with_tools

MARKUP = "</pre></div><script>alert(1)</script><img src=x onerror='alert(2)'>\"'>"


class Page(HTMLParser):
    """Reads markup: its elements in order, what is inside collapsed ones, and its text as a person sees it."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.collapsed: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(markup)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self._open.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"
        if "details" in self._open and "summary" not in self._open:
            self.collapsed.append(data)


def test_who_speaks_is_said_and_the_system_prompt_is_collapsed() -> None:
    page = Page(conversation(with_tools()))
    assert re.findall("System|User · customer|User|Assistant", page.text) == [
        "System", "User · customer", "Assistant", "Assistant", "User",
    ]  # fmt: skip
    assert page.collapsed[1:] == ["Help the shop's customers.", "One was found."]
    assert "find_order" in page.collapsed[0], "the tools that the model could call"


def test_a_tools_result_is_shown_under_its_call_whatever_the_order() -> None:
    text = Page(conversation(with_tools())).text
    order = [text.index(words) for words in ('"number": "4711"', "on its way", "find_person", "Ada", "It is on its")]
    assert order == sorted(order)
    assert text.count("Ada") == 1


def test_call_ids_that_are_used_again_do_not_mix_up_the_results() -> None:
    turn = (
        Message(role=Role.ASSISTANT, tool_calls=(FIND,)),
        Message(role=Role.TOOL, content="a", tool_call_id="call_1"),
    )
    again = (turn[0], turn[1].model_copy(update={"content": "b"}))
    text = Page(conversation(Call(messages=(*turn, *again)))).text
    assert re.findall(r"^(?:Result|a|b)$", text, re.M) == ["Result", "a", "Result", "b"]


def test_a_result_without_its_call_is_a_turn_of_its_own() -> None:
    alone = Message(role=Role.TOOL, content='{"state":"lost"}', tool_call_id="gone", name="find_order")
    text = Page(conversation(Call(messages=(alone,)))).text
    assert "Tool result · find_order" in text
    assert '"state": "lost"' in text


def test_arguments_are_laid_out_if_they_are_json_and_shown_as_they_are_if_not() -> None:
    order = {"number": "4711", "include": ["history", "carrier"], "customer": {"name": "Ada", "city": "Graz ✓"}}
    page = Page(answer(Answer(tool_calls=(ToolCall(name="find", arguments=json.dumps(order)),))))
    assert '\n  "number": "4711",\n  "include": [' in page.text
    assert "Graz ✓" in page.text
    for other in ("{broken", "4711.10", '["\\ud800"]', "[" * 3_000 + "]" * 3_000):
        assert other in Page(answer(Answer(tool_calls=(ToolCall(name="find", arguments=other),)))).text


@pytest.mark.parametrize(
    "arguments",
    [
        '{"amount": 10.00, "account": 12345678901234567890.25}',
        '{"amount": 10, "amount": 20}',
        '{"share": 1e400, "low": -0, "other": NaN, "none": null, "is": [true, false], "empty": {}, "no": []}',
    ],
)
@pytest.mark.parametrize("is_long", [False, True])
def test_laid_out_arguments_have_every_number_and_key_as_the_model_wrote_them(arguments: str, is_long: bool) -> None:
    written = f'{{"first": "{"long " * 20}", "then": {arguments}}}' if is_long else arguments
    text = Page(answer(Answer(tool_calls=(ToolCall(name="pay", arguments=written),)))).text
    assert re.sub(r"\s", "", written) in re.sub(r"\s", "", text)


def test_what_the_event_has_only_by_reference_is_a_chip_with_its_kind_and_size() -> None:
    media = [
        Media(kind="image", hash="h", media_type="image/png", size=48_213),
        Media(kind="document", hash="h", media_type="application/pdf", size=2_300_000, key="k"),
        Media(kind="audio", hash="h"),
    ]
    parts = (Part(type="text", text="look"), *(Part(type="file", media=one) for one in media), Part(type="mystery"))
    text = Page(conversation(Call(messages=(Message(role=Role.USER, content=parts),)))).text
    assert re.sub(r"\s+", " ", text).endswith(
        "look Picture image/png · 48 kB Document application/pdf · 2.3 MB Sound by its address mystery "
    )


def test_a_conversation_that_was_cut_says_so_and_marks_where() -> None:
    long = Call(messages=(Message(role=Role.USER, content="start " + "word " * 200_000 + "end"),))
    markup = conversation(bounded_call(long, 10_000))
    assert CUT_CALL in Page(markup).text
    assert re.search(r"<mark>\[… \d+ characters left out …\]</mark>", markup)
    whole = conversation(with_tools())
    assert CUT_CALL not in whole
    assert "<mark>" not in whole


def test_an_answer_that_was_cut_says_so_and_is_no_draft_of_the_right_one() -> None:
    cut = Answer(text="start\n[… 9 characters left out …]\nend", truncated=True)
    assert CUT_ANSWER in answer(cut)
    assert "<mark>" in answer(cut)
    assert _draft(question(labels=(), answers=(cut,))) == ""
    assert _draft(question(labels=(), answers=(Answer(text="whole"),))) == "whole"


def test_reasoning_is_collapsed_and_a_refusal_named_and_nothing_is_called_empty() -> None:
    page = Page(answer(Answer(text="no", refusal="I cannot.", reasoning="secret thoughts")))
    assert page.collapsed == ["secret thoughts"]
    assert "Refuses\nI cannot." in page.text
    assert "empty answer" in answer(Answer())


def test_both_sides_of_a_pair_are_shown_the_same_way_and_only_the_letter_tells_them_apart() -> None:
    same = Answer(text="It is on its way.", tool_calls=(FIND,), reasoning="hm")
    other_ids = same.model_copy(update={"tool_calls": (FIND.model_copy(update={"id": "chatcmpl-tool-1"}),)})
    a, b = _sides(ticket(labels=(), answers=(same, other_ids))).split("<h2>B</h2>")
    assert a.split("<h2>A</h2>")[1].split("</div><div class='card side'>")[0] == b.removesuffix("</div></div>")


def test_the_page_of_a_label_question_shows_no_answer() -> None:
    assert "refund" not in conversation(question().call)


@pytest.mark.parametrize("truncated", [False, True])
def test_nothing_of_a_conversation_is_markup(truncated: bool) -> None:
    call = ToolCall(name=MARKUP, arguments=json.dumps({MARKUP: [MARKUP, {"long": MARKUP * 3}]}), id=MARKUP)
    media = Media(kind="image", hash=MARKUP, media_type=MARKUP, key=MARKUP)
    parts = (Part(type=MARKUP), Part(type="refusal", text=MARKUP), Part(type="image_url", media=media))
    said: dict[str, Any] = {"name": MARKUP, "reasoning": MARKUP, "refusal": MARKUP}
    messages = (
        Message(role="system", content=MARKUP, **said),
        Message(role="user", content=(*parts, Part(type="text", text=MARKUP)), **said),
        Message(
            role="assistant", content=MARKUP, tool_calls=(call, call.model_copy(update={"arguments": MARKUP})), **said
        ),
        Message(role="tool", content=json.dumps({MARKUP: MARKUP * 3}), tool_call_id=MARKUP),
        Message(role="tool", content=(Part(type="text", text=MARKUP),), tool_call_id="unknown", name=MARKUP),
        Message(role="user", content=MARKUP),
    )
    tool = {"type": "function", "function": {"name": MARKUP, "parameters": {MARKUP: MARKUP}}}
    whole = Call(
        messages=messages, tools=(tool, {"type": MARKUP}), response_format={MARKUP: MARKUP}, truncated=truncated
    )
    given = Answer(text=MARKUP, tool_calls=(call,), refusal=MARKUP, reasoning=MARKUP, truncated=truncated)
    for markup in (conversation(whole), answer(given)):
        page = Page(markup)
        assert set(page.elements) <= {"div", "details", "summary", "b", "pre", "code", "span", "mark"}
        assert page.attributes <= {"class", "tabindex"}
        assert "alert" not in re.sub(r"&lt;script&gt;alert|onerror=&#x27;alert", "", markup)
        assert MARKUP in unescape(markup)
