"""A reviewer of an extraction writes JSON by its schema, or is told where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nicegui import Client, ui
from nicegui.page import page

from schemas.conversation import Answer
from schemas.labels import CorrectionSubmitted
from services.console.pages.review import ReviewPage
from tests.database import Database
from tests.unit.console.fakes import Scene, question
from tests.unit.shared.grading.orders import orders

SPEC = orders(name="desk")
GIVEN = '{"customer": {"name": "Ann"}, "items": []}'
RIGHT = '{"customer": {"name": "Ann"}, "items": [{"sku": "A1", "count": 2}]}'


@pytest.fixture
async def scene(tmp_path: Path, database: Database) -> Scene:
    scene = await Scene.of(tmp_path, database, SPEC)
    asked = question(labels=(), answers=(Answer(text=GIVEN),), task_revision=SPEC.revision)
    await scene.queue.add_requests([asked])
    return scene


async def test_an_answer_is_published_in_the_spelling_that_is_trained_on(scene: Scene) -> None:
    written = json.dumps({"items": [{"count": 2, "sku": "A1"}], "customer": {"name": "Ann"}}, indent=2)
    assert (await scene.correct(label=written)).status_code == 200
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert event.label == RIGHT


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (RIGHT[:-1], "label: no JSON: "),
        (RIGHT.replace("2}", "0}"), "label: items[0].count: 0 is less than the minimum of 1"),
        ("Ann wants two", "label: no JSON: "),
    ],
)
async def test_an_answer_that_breaks_the_schema_is_refused_with_the_place(scene: Scene, label: str, said: str) -> None:
    refused = await scene.correct(label=label)
    assert refused.status_code == 422
    assert refused.json()["error"]["message"].startswith(said)
    assert scene.published == []


async def test_personal_data_in_an_answer_is_replaced_and_the_answer_stays_json(scene: Scene) -> None:
    text = RIGHT.replace("A1", "mail\\nmaria.silva@example.com")
    assert (await scene.correct(label=text)).status_code == 200
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert event.label is not None
    assert "maria.silva" not in event.label
    assert json.loads(event.label)["items"][0]["sku"].startswith("mail\n")
    assert (event.redactions, len(event.surrogates)) == (1, 1)


async def test_the_page_shows_the_answer_a_field_a_line_and_says_what_is_wrong_while_it_is_written(
    scene: Scene,
) -> None:
    with Client(page("/review/desk"), request=None):
        shown = ReviewPage(scene.reviews, "desk")
        shown.reviewer = "ann"
        await shown.draw()
        (text,) = [e for e in shown._box.descendants() if isinstance(e, ui.textarea)]
        assert text.value == json.dumps(json.loads(GIVEN), indent=2)
        text.value = RIGHT.replace("2}", "0}")
        assert text.error is not None and text.error.startswith("items[0].count")
        text.value = RIGHT
        assert text.error is None
