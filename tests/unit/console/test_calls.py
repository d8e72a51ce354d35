"""A reviewer of calls fills in a function and its arguments, or is told what is missing or wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from nicegui import Client, ui
from nicegui.page import page

from schemas.conversation import Answer, ToolCall
from schemas.labels import CorrectionSubmitted
from services.console.calls import ArgumentInput, FormCall, answer_of_form, form_calls, form_text, inputs_of
from services.console.pages.forms import CallForm
from services.console.pages.review import ReviewPage
from shared.errors import InvalidMessage
from tests.database import Database
from tests.unit.console.fakes import Scene, question
from tests.unit.shared.grading.home import STOPS, book, calls, home, light

HOME = home(name="desk")
GIVEN = Answer(tool_calls=(ToolCall(name="stop", arguments="{}", id="call_1"),))


@pytest.fixture
async def scene(tmp_path: Path, database: Database) -> Scene:
    scene = await Scene.of(tmp_path, database, HOME)
    await scene.queue.add_requests([question(labels=(), answers=(GIVEN,), task_revision=HOME.revision)])
    return scene


def test_the_form_asks_for_each_argument_with_what_it_may_be() -> None:
    assert inputs_of(HOME.functions["set_light"]) == (
        ArgumentInput("room", ("kitchen", "hall"), "", True),
        ArgumentInput("on", ("true", "false"), "boolean", True),
        ArgumentInput("brightness", (), "integer", False),
    )
    assert inputs_of(HOME.functions["stop"]) == ()


@pytest.mark.parametrize(
    "answer",
    [
        calls(light(brightness=20)), calls(STOPS),
        calls(book("Ann Lee", price=12.5, guests=["Bo", "Cy"])), calls(book("42")),
        calls(book("")), calls(book("  Ann,\n  Bo\n", price=100)), calls(light(brightness=None)),
    ],
)  # fmt: skip
def test_what_the_form_begins_with_is_what_it_answers_if_nothing_is_changed(answer: str) -> None:
    assert answer_of_form(form_calls(answer, HOME), form_text(answer), HOME) == answer


def test_an_argument_that_is_left_empty_is_left_out_or_null_where_the_schema_has_null() -> None:
    filled = FormCall("set_light", {"room": "hall", "on": "false", "brightness": ""})
    assert answer_of_form([filled], "", HOME) == calls(light("hall", False, brightness=None))
    booked = FormCall("book_table", {"name": "Ann", "day": "2026-12-01", "price": " "})
    assert answer_of_form([booked], "", HOME) == calls(book())


def test_an_optional_argument_that_is_empty_is_left_out_whatever_the_model_gave() -> None:
    (call,) = form_calls(calls(book("Ann", price=None)), HOME)
    assert answer_of_form([call], "", HOME) == calls(book("Ann"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"on": "true"}, 'set_light: the answer: "room" is a required property'),
        ({"room": "hall", "on": "true", "brightness": "bright"}, "set_light: brightness: "),
        ({"room": "hall", "on": "true", "brightness": "101"}, "101 is greater than the maximum of 100"),
    ],
)
def test_what_is_missing_or_wrong_is_named(values: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        answer_of_form([FormCall("set_light", values)], "", HOME)
    assert said in caught.value.reason


LOOK_UP = {
    "name": "look_up",
    "parameters": {
        "type": "object",
        "properties": {
            "order": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "code": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            "place": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}]},
        },
        "required": ["order", "place"],
        "$defs": {"Place": {"enum": ["shelf", "lorry"], "type": "string"}},
    },
}


def test_what_pydantic_writes_for_an_optional_argument_is_filled_in_as_any_other() -> None:
    desk = home(tools=[LOOK_UP], comparators={})
    assert [(asked.choices, asked.hint, asked.required) for asked in inputs_of(desk.functions["look_up"])] == [
        ((), "string", False),
        ((), "integer or string", False),
        (("shelf", "lorry"), "string", False),
    ]
    filled = FormCall("look_up", {"order": "12346", "code": "", "place": ""})
    assert answer_of_form([filled], "", desk) == calls(("look_up", {"order": "12346", "place": None}))
    filled = FormCall("look_up", {"order": "", "place": "lorry"})
    assert answer_of_form([filled], "", desk) == calls(("look_up", {"order": None, "place": "lorry"}))


def test_arguments_that_the_schema_allows_without_listing_them_stay() -> None:
    desk = home(
        tools=[{"name": "note", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}],
        comparators={},
    )
    (call,) = form_calls(calls(("note", {"a": "q", "b": 2})), desk)
    assert answer_of_form([call], "", desk) == calls(("note", {"a": "q", "b": 2}))
    call.values["a"] = "r"
    assert answer_of_form([call], "", desk) == calls(("note", {"a": "r", "b": 2}))


async def test_a_correction_is_published_in_the_spelling_that_is_trained_on(scene: Scene) -> None:
    turned = '[{"name": "set_light", "arguments": "{\\"on\\":true,\\"room\\":\\"hall\\"}"}]'
    assert (await scene.correct(label=turned)).status_code == 200
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert event.label == calls(light("hall"))


async def test_calls_that_could_not_be_run_are_refused_with_the_reason(scene: Scene) -> None:
    for label, said in ((calls(light("attic")), "label: set_light: room: "), ("Sure!", "label: no call; ")):
        refused = await scene.correct(label=label)
        assert refused.status_code == 422
        assert refused.json()["error"]["message"].startswith(said)
    assert scene.published == []


async def test_personal_data_in_an_argument_is_replaced_and_the_call_can_still_be_run(scene: Scene) -> None:
    assert (await scene.correct(label=calls(book('mail "maria.silva@example.com"')))).status_code == 200
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert "maria.silva" not in (event.label or "")
    (call,) = form_calls(event.label or "", HOME)
    assert call.function == "book_table"
    assert call.values["day"] == "2026-12-01"


def selects(client: Client) -> list[ui.select]:
    return [element for element in client.elements.values() if isinstance(element, ui.select)]


def test_the_form_shows_the_arguments_of_the_function_that_is_chosen_and_keeps_what_both_have() -> None:
    with Client(page("/"), request=None) as client:
        form = CallForm(HOME, calls(light("hall")))
        form.draw()
        function, room, on = selects(client)
        assert (function.value, room.value, on.value) == ("set_light", "hall", "true")
        on.set_value("false")
        assert form.answer() == calls(light("hall", False, brightness=None))
        function.set_value("stop")
        assert [choice.value for choice in selects(client)] == ["stop"]
        assert form.answer() == calls(STOPS)


def test_an_argument_of_several_lines_has_a_field_of_several_lines() -> None:
    with Client(page("/"), request=None) as client:
        form = CallForm(HOME, calls(book("Ann\nBo")))
        form.draw()
        fields = [element for element in client.elements.values() if isinstance(element, ui.textarea)]
        assert fields[0].value == "Ann\nBo"
        fields[0].set_value("Ann\nCy")
        assert form.answer() == calls(book("Ann\nCy"))


def test_where_no_call_may_be_right_the_form_takes_a_text_instead() -> None:
    auto = home(tool_choice="auto")
    with Client(page("/"), request=None) as client:
        form = CallForm(auto, calls(STOPS))
        form.draw()
        selects(client)[0].set_value("(no call)")
        (text,) = [element for element in client.elements.values() if isinstance(element, ui.textarea)]
        text.set_value("I cannot do that.")
        assert form.answer() == "I cannot do that."


async def test_the_review_page_shows_the_form_with_the_call_that_was_given(scene: Scene) -> None:
    with Client(page("/"), request=None) as client:
        review = ReviewPage(scene.reviews, "desk")
        review.reviewer = "ana"
        await review.draw()
        assert selects(client)[0].value == "stop"
