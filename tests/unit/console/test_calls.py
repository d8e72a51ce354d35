"""A reviewer of calls chooses a function and writes its arguments, or is told what is missing or wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from nicegui import Client, ui
from nicegui.page import page

from schemas.conversation import Answer, ToolCall
from schemas.labels import CorrectionSubmitted
from services.console.pages.forms import CallForm
from services.console.pages.review import ReviewPage
from shared.errors import InvalidMessage
from shared.grading.tool_calls import loose_calls
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


def textareas(client: Client) -> list[ui.textarea]:
    return [element for element in client.elements.values() if isinstance(element, ui.textarea)]


@pytest.mark.parametrize(
    "answer",
    [
        calls(light(brightness=20)), calls(STOPS),
        calls(book("Ann Lee", price=12.5, guests=["Bo", "Cy"])), calls(book("42")),
        calls(book("")), calls(book("  Ann,\n  Bo\n", price=100)), calls(light(brightness=None)),
    ],
)  # fmt: skip
def test_what_the_form_begins_with_is_what_it_answers_if_nothing_is_changed(answer: str) -> None:
    with Client(page("/"), request=None):
        assert CallForm(HOME, answer).answer() == answer


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"on": true}', 'set_light: the answer: "room" is a required property'),
        ('{"room": "hall", "on": true, "brightness": "bright"}', "set_light: brightness: "),
        ('{"room": "hall", "on": true, "brightness": 101}', "101 is greater than the maximum of 100"),
        ('{"room": "hall"', "set_light: "),
    ],
)
def test_what_is_missing_or_wrong_is_named(arguments: str, said: str) -> None:
    with Client(page("/"), request=None) as client:
        form = CallForm(HOME, calls(light()))
        form.draw()
        textareas(client)[0].set_value(arguments)
        with pytest.raises(InvalidMessage) as caught:
            form.answer()
    assert said in caught.value.reason


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
    (call,) = loose_calls(event.label or "")
    assert (call.name, call.arguments["day"]) == ("book_table", "2026-12-01")


def selects(client: Client) -> list[ui.select]:
    return [element for element in client.elements.values() if isinstance(element, ui.select)]


def test_the_form_shows_the_arguments_and_another_function_may_be_chosen() -> None:
    with Client(page("/"), request=None) as client:
        form = CallForm(HOME, calls(light("hall")))
        form.draw()
        (function,), (arguments,) = selects(client), textareas(client)
        assert function.value == "set_light" and '"room": "hall"' in arguments.value
        arguments.set_value('{"room": "hall", "on": false}')
        assert form.answer() == calls(light("hall", False))
        arguments.set_value("{}")
        function.set_value("stop")
        assert form.answer() == calls(STOPS)


def test_where_no_call_may_be_right_the_form_takes_a_text_instead() -> None:
    auto = home(tool_choice="auto")
    with Client(page("/"), request=None) as client:
        form = CallForm(auto, calls(STOPS))
        form.draw()
        selects(client)[0].set_value("(no call)")
        (text,) = textareas(client)
        text.set_value("I cannot do that.")
        assert form.answer() == "I cannot do that."


async def test_the_review_page_shows_the_form_with_the_call_that_was_given(scene: Scene) -> None:
    with Client(page("/"), request=None) as client:
        review = ReviewPage(scene.reviews, "desk")
        review.reviewer = "ana"
        await review.draw()
        assert selects(client)[0].value == "stop"
