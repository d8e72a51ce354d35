"""A reviewer of a task with several labels ticks them, blind, by mouse or by key."""

from __future__ import annotations

from pathlib import Path

import pytest
from nicegui import Client, events, ui
from nicegui.page import page

from schemas.conversation import Answer
from schemas.labels import CorrectionSubmitted
from schemas.tasks import TaskChanged, TaskKind
from services.console.pages.review import DONE_KEY, ReviewPage
from tests.database import Database
from tests.unit.console.fakes import Scene, question, ticket
from tests.unit.shared.grading.tickets import LABELS, tickets, topics

SPEC = tickets(name="desk")
GIVEN = Answer(text=topics("invoice"))


@pytest.fixture
async def scene(tmp_path: Path, database: Database) -> Scene:
    scene = await Scene.of(tmp_path, database, SPEC)
    return scene


async def asked(scene: Scene, **more: object) -> None:
    await scene.queue.add_requests([question(labels=(), answers=(GIVEN,), task_revision=SPEC.revision, **more)])


def label_of(scene: Scene) -> str | None:
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    return event.label


async def test_a_set_is_published_in_one_spelling(scene: Scene) -> None:
    await asked(scene)
    assert (await scene.correct(label='["refund", "delivery", "refund"]')).status_code == 200
    assert label_of(scene) == topics("delivery", "refund")


@pytest.mark.parametrize(
    ("label", "said"),
    [("refund", "label: no JSON"), (topics("parcel"), "label: 'parcel' is not a label of the task; its labels: deliv")],
)
async def test_what_is_no_set_of_labels_is_refused_with_the_reason(scene: Scene, label: str, said: str) -> None:
    await asked(scene)
    refused = await scene.correct(label=label)
    assert refused.status_code == 422
    assert refused.json()["error"]["message"].startswith(said)
    assert scene.published == []


async def test_labels_that_look_like_personal_data_are_not_replaced(scene: Scene) -> None:
    mails = tickets(name="desk", labels=["maria.silva@example.com", "refund"])
    await scene.tasks.put("desk", TaskChanged(task="desk", task_revision=mails.revision, spec=mails))
    await asked(scene)
    assert (await scene.correct(label=topics("maria.silva@example.com"))).status_code == 200
    assert label_of(scene) == topics("maria.silva@example.com")


@pytest.mark.parametrize(("kind", "is_open"), [("multi_label", "set"), ("classification", "label")])
async def test_questions_of_an_earlier_revision_stay_open_if_they_ask_for_the_same_form(
    scene: Scene, kind: str, is_open: str
) -> None:
    spec = SPEC.model_copy(update={"kind": TaskKind(kind)})
    earlier = {"task_revision": "r0"}
    await scene.queue.add_requests([question("set", labels=(), **earlier), question("label", labels=LABELS, **earlier)])
    (found,) = await scene.queue.other_questions("desk", spec, "ann", 9)
    assert found.request_id == is_open


async def review(scene: Scene) -> ReviewPage:
    shown = ReviewPage(scene.reviews, "desk")
    shown.reviewer = "ann"
    await shown.draw()
    return shown


def boxes(shown: ReviewPage) -> dict[str, ui.checkbox]:
    return {e.text: e for e in shown._box.descendants() if isinstance(e, ui.checkbox)}


def texts(shown: ReviewPage) -> str:
    return " ".join(str(e.content) for e in shown._box.descendants() if isinstance(e, ui.html))


async def press(shown: ReviewPage, key: str) -> None:
    action = events.KeyboardAction(keydown=True, keyup=False, repeat=False)
    none = events.KeyboardModifiers(alt=False, ctrl=False, meta=False, shift=False)
    pressed = events.KeyboardKey(name=key, code=key, location=0)
    await shown.on_key(
        events.KeyEventArguments(
            sender=ui.keyboard(), client=shown._box.client, action=action, key=pressed, modifiers=none
        )
    )


async def test_the_page_has_a_box_for_each_label_and_neither_ticks_nor_shows_what_the_model_answered(
    scene: Scene,
) -> None:
    await asked(scene, suggestion=topics("damage"))
    with Client(page("/review/desk"), request=None):
        shown = await review(scene)
        assert {name: box.value for name, box in boxes(shown).items()} == dict.fromkeys(LABELS, False)
        assert "The answer that was given" not in texts(shown)
        assert "The user wrote" in texts(shown)


async def test_labels_are_ticked_by_mouse_and_by_key_and_another_key_sends_them(scene: Scene) -> None:
    await asked(scene)
    with Client(page("/review/desk"), request=None):
        shown = await review(scene)
        boxes(shown)["refund"].value = True
        for key in ("1", "2", "2", "9"):  # The second label is ticked and taken away; there is no ninth.
            await press(shown, key)
        assert [name for name, box in boxes(shown).items() if box.value] == ["delivery", "refund"]
        assert scene.published == []
        await press(shown, DONE_KEY)
    assert label_of(scene) == topics("delivery", "refund")


async def test_no_label_may_be_right(scene: Scene) -> None:
    await asked(scene)
    with Client(page("/review/desk"), request=None):
        await press(await review(scene), DONE_KEY)
    assert label_of(scene) == "[]"


async def test_an_answer_that_the_reviewer_goes_back_to_is_ticked(scene: Scene) -> None:
    await asked(scene)
    with Client(page("/review/desk"), request=None):
        shown = await review(scene)
        await press(shown, "4")
        await press(shown, DONE_KEY)
        await press(shown, "ArrowLeft")
        assert [name for name, box in boxes(shown).items() if box.value] == ["invoice"]


async def test_of_a_pair_people_say_which_set_is_better(scene: Scene) -> None:
    both = (GIVEN, Answer(text=topics("damage")))
    await scene.queue.add_requests([ticket(labels=(), answers=both, task_revision=SPEC.revision)])
    with Client(page("/review/desk"), request=None):
        shown = await review(scene)
        assert not boxes(shown)
        await press(shown, "2")
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert (event.label, event.preference) == (None, "b")
