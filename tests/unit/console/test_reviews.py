"""What reviewers see, what they may answer, and what is published."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from nicegui import Client, ui
from nicegui.events import KeyboardAction, KeyboardKey, KeyboardModifiers, KeyEventArguments
from nicegui.page import page

from schemas.base import MAX_TEXT, Event
from schemas.conversation import Answer, Call, FinishReason
from schemas.labels import CorrectionSubmitted, LabelRequested
from schemas.predictions import SubjectForgotten
from schemas.task_settings import ExtraPattern, RedactionSettings
from schemas.tasks import TaskChanged
from services.console.domain import (
    ReviewAnswer,
    acceptable_suggestion,
    check_answer,
    check_reviewer,
    interleave,
    keys_for,
    shown,
    with_suggestion,
    without_erased_suggestion,
    without_suggestion,
)
from services.console.open_pages import SHOWN_FOR
from services.console.pages.overview import _overview
from services.console.pages.review import ReviewPage, mount_review_page
from shared.conversation import QUESTION_BYTES
from shared.errors import InvalidMessage
from shared.privacy.erasure import ErasedSubjects
from tests.database import Database
from tests.unit.console.fakes import FIND, SPEC, Scene, call, question, ticket, with_tools


@pytest.fixture
async def scene(tmp_path: Path, database: Database) -> Scene:
    scene = await Scene.of(tmp_path, database, SPEC)
    await scene.queue.add_requests([question(), ticket(app="shop")])
    return scene


async def test_a_correction_has_the_fields_of_its_question(scene: Scene) -> None:
    assert (await scene.correct("t", label="delivery", seconds=2.5)).status_code == 200
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    request = ticket(app="shop")
    for name in ("task", "task_revision", "request_id", "prediction_id", "purpose", "call", "answers",
                 "inclusion_probability", "drawn_probability", "overlap", "app", "ticket_id", "user_hash"):  # fmt: skip
        assert getattr(event, name) == getattr(request, name)
    assert (event.reviewer, event.label, event.seconds) == ("ann", "delivery", 2.5)


async def test_an_answer_to_a_question_whose_person_is_erased_meanwhile_is_of_no_question(scene: Scene) -> None:
    async def publish_while_it_is_erased(event: Event) -> None:
        scene.published.append(event)
        await scene.queue.erase(SubjectForgotten(task="desk", task_revision=SPEC.revision, subject_hash="someone"))

    scene.publish = publish_while_it_is_erased  # type: ignore[method-assign]
    answer = await scene.correct("q", label="delivery")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert await scene.given() == {}


def said(scene: Scene) -> list[tuple[str | None, str | None]]:
    return [(e.label, e.preference) for e in scene.published if isinstance(e, CorrectionSubmitted)]


async def test_a_reviewers_other_answer_takes_the_place_of_their_first_by_an_event_of_its_own(scene: Scene) -> None:
    answers = [await scene.correct("t", label=label) for label in ("delivery", "refund", "delivery")]
    assert [answer.json()["counted"] for answer in answers] == [True] * 3
    assert said(scene) == [("delivery", None), ("refund", None), ("delivery", None)]
    assert len({event.event_id for event in scene.published}) == 3, "back to the first answer is an edit, too"
    moments = [event.occurred_at for event in scene.published]
    assert moments == sorted(set(moments))
    assert await scene.queue.request("t") == (ANY, 0), "one person has answered, however often"
    assert (await scene.given())["t", "ann"].edits == 2


async def test_the_same_answer_again_changes_nothing(scene: Scene) -> None:
    first, second = await scene.correct(label="delivery", seconds=1), await scene.correct(label="delivery", seconds=9)
    assert first.json() == second.json()
    assert said(scene) == [("delivery", None)]


async def test_an_edit_counts_as_newer_even_where_the_clock_went_back(scene: Scene) -> None:
    await scene.correct(label="delivery")
    scene.clock -= timedelta(hours=1)
    await scene.correct(label="refund")
    before, after = scene.published
    assert after.occurred_at > before.occurred_at


async def test_an_edit_is_compared_as_it_is_stored_and_keeps_its_surrogates(scene: Scene) -> None:
    await scene.queue.add_requests([question("free", labels=())])
    raw = "Write to maria@acme.internal."
    await scene.correct("free", label=raw)
    stored = (await scene.given())["free", "ann"]
    for same in (raw, stored.answer.label):
        assert (await scene.correct("free", label=same)).status_code == 200
    assert len(scene.published) == 1, "it says the same, typed anew or left as the page shows it"
    await scene.correct("free", label=f"{stored.answer.label} Thanks!")
    edited = scene.published[-1]
    assert isinstance(edited, CorrectionSubmitted)
    assert (edited.label, edited.surrogates) == (f"{stored.answer.label} Thanks!", stored.surrogates)


async def test_an_edit_whose_recording_failed_is_published_again_or_replaced_under_another_id(scene: Scene) -> None:
    await scene.correct("t", label="delivery")
    scene.queue.recording_fails = True
    assert (await scene.correct("t", label="refund")).status_code == 503
    scene.queue.recording_fails = False
    await scene.correct("t", label="refund")
    _, lost, again = scene.published
    assert lost.event_id == again.event_id
    scene.queue.recording_fails = True
    await scene.correct("t", label="delivery")
    scene.queue.recording_fails = False
    await scene.correct("t", preference="cannot_tell")
    *_, lost, instead = scene.published
    assert lost.event_id != instead.event_id, "a store that has the first must not drop the second"


async def test_a_reviewer_reads_what_they_answered_the_last_first(scene: Scene) -> None:
    await scene.end_comparison()
    await scene.correct("t", label="delivery")
    await scene.correct("t", label="refund")
    await scene.correct("q", label="delivery")
    await scene.correct("q", label="delivery", reviewer="ben")
    path = {"task": "desk", "reviewer": "ann"}
    items = (await scene.call("GET", "/api/answers", params=path)).json()["items"]
    assert [(i["request_id"], i["answer"]["label"], i["edits"], i["comparison_ended"]) for i in items] == [
        ("q", "delivery", 0, False), ("t", "refund", 1, True),
    ]  # fmt: skip
    assert all("finish_reason" not in given for item in items for given in item["answers"]), "it stays blind"
    older = await scene.call("GET", "/api/answers", params={**path, "before": items[0]["answered_at"]})
    assert [item["request_id"] for item in older.json()["items"]] == ["t"]
    assert (await scene.call("GET", "/api/answers?task=nope&reviewer=ann")).status_code == 404


async def test_an_answer_whose_recording_failed_is_published_again_as_the_same_event(scene: Scene) -> None:
    scene.queue.recording_fails = True
    assert (await scene.correct(label="delivery")).status_code == 503
    scene.queue.recording_fails = False
    assert (await scene.correct(label="delivery")).status_code == 200
    assert len({event.event_id for event in scene.published}) == 1


async def test_an_answer_to_a_question_with_enough_answers_is_not_published(scene: Scene) -> None:
    await scene.correct(label="delivery", reviewer="ann")
    late = await scene.correct(label="refund", reviewer="ben")
    assert (late.status_code, late.json()["counted"]) == (200, False)
    assert len(scene.published) == 1


async def test_what_a_reviewer_types_is_redacted_before_it_is_published_or_stored(scene: Scene) -> None:
    await scene.queue.add_requests([question("free", labels=())])
    assert (await scene.correct("free", label="Write to maria@acme.internal.")).status_code == 200
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert event.redactions == 1
    assert event.label is not None
    assert "acme" not in event.label
    (surrogate,) = event.surrogates
    assert surrogate in event.label, "a later pass can tell it from personal data"
    assert (await scene.given())["free", "ann"].answer.label == event.label


async def test_a_surrogate_copied_from_the_question_stays(scene: Scene) -> None:
    asked = question("free", labels=(), call=call("I am x@example.com"))
    await scene.queue.add_requests([asked])
    await scene.correct("free", label="Dear x@example.com")
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert (event.label, event.redactions) == ("Dear x@example.com", 0)


async def test_answers_of_a_task_without_redaction_are_not_redacted(scene: Scene) -> None:
    spec = SPEC.model_copy(update={"redaction": RedactionSettings(enabled=False)})
    await scene.tasks.put("desk", TaskChanged(task="desk", task_revision=spec.revision, spec=spec))
    await scene.queue.add_requests([question("free", labels=())])
    await scene.correct("free", label="Write to maria@acme.internal.")
    assert [getattr(event, "label", None) for event in scene.published] == ["Write to maria@acme.internal."]


async def test_an_answer_that_cannot_be_redacted_is_neither_published_nor_stored(scene: Scene) -> None:
    scene.redactor_is_broken = True
    await scene.queue.add_requests([question("free", labels=())])
    assert (await scene.correct("free", label="Write to maria@acme.internal.")).status_code == 503
    assert (scene.published, await scene.given()) == ([], {})
    scene.redactor_is_broken = False
    assert (await scene.correct("free", label="Write to maria@acme.internal.")).status_code == 200


async def test_two_reviewers_may_answer_a_question_that_needs_two(scene: Scene) -> None:
    await scene.queue.add_requests([question("two", overlap=2)])
    ids = {(await scene.correct("two", reviewer=name, label="refund")).json()["correction_id"] for name in "ab"}
    assert len(ids) == 2
    assert len(scene.published) == 2


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ({"request_id": "unknown", "label": "refund"}, 404, "no question 'unknown'"),
        ({"label": "parcel"}, 422, "expected one of 'delivery', 'refund'"),
        ({}, 422, "exactly one of label and preference"),
        ({"label": "refund", "preference": "a"}, 422, "exactly one of label and preference"),
        ({"preference": "a"}, 422, "asks for the true answer"),
        ({"label": ""}, 422, "found no text"),
        ({"preference": "maybe"}, 422, "preference"),
        ({"label": "refund", "reviewer": "  "}, 422, "reviewer"),
        ({"label": "refund", "reviewer": "x" * 101}, 422, "reviewer"),
        ({"label": "refund", "reviewer": "a\nb"}, 422, "reviewer"),
        ({"label": "refund", "seconds": -1}, 422, "seconds"),
        ({"label": "refund", "lable": "refund"}, 422, "lable"),
        ({"label": "refund", "request_id": "q\x00"}, 422, "request_id"),
    ],
)
async def test_an_invalid_correction_gets_a_reason_and_is_not_published(
    scene: Scene, answer: dict[str, Any], status: int, message: str
) -> None:
    refused = await scene.correct(**answer)
    assert refused.status_code == status
    assert message in refused.json()["error"]["message"]
    assert scene.published == []


async def test_a_long_list_of_allowed_labels_is_cut(scene: Scene) -> None:
    await scene.queue.add_requests([question("many", labels=tuple(f"l{n}" for n in range(77)))])
    message = (await scene.correct("many", label="x")).json()["error"]["message"]
    assert "'l19' and 57 more" in message


async def test_a_pair_of_free_texts_is_compared(scene: Scene) -> None:
    await scene.queue.add_requests([ticket("pair", labels=())])
    assert "which answer is better" in (await scene.correct("pair", label="A")).json()["error"]["message"]
    assert (await scene.correct("pair", preference="both_right")).status_code == 200


async def test_cannot_tell_is_an_answer_about_any_pair_and_about_nothing_else(scene: Scene) -> None:
    await scene.queue.add_requests([ticket("texts", labels=())])
    for name in ("t", "texts"):
        assert (await scene.correct(name, preference="cannot_tell")).json()["counted"]
    given = [event for event in scene.published if isinstance(event, CorrectionSubmitted)]
    assert [(event.label, event.preference) for event in given] == [(None, "cannot_tell")] * 2, "no training label"
    assert (await scene.correct("t", reviewer="ben", preference="a")).status_code == 422
    refused = await scene.correct("q", preference="cannot_tell")
    assert (refused.status_code, len(scene.published)) == (422, 2)


async def test_a_skip_is_stored_with_its_reviewer_and_the_question_is_left_to_others(scene: Scene) -> None:
    skip = {"request_id": "t", "reviewer": " ann "}
    for _ in range(2):
        assert (await scene.call("POST", "/api/skips", json=skip)).json() == {"skipped": True}
    assert (await scene.skips(), scene.published) == ({("t", "ann")}, [])
    items = (await scene.call("GET", "/api/queue?task=desk&reviewer=ann")).json()["items"]
    assert [item["request_id"] for item in items] == ["q"]
    counts = (await scene.call("GET", "/api/reviewers?task=desk")).json()
    assert counts == {"reviewers": [{"reviewer": "ann", "answers": 0, "cannot_tell": 0, "skipped": 1}]}
    assert (await scene.call("GET", "/api/reviewers?task=nope")).status_code == 404
    for wrong, status in (({"request_id": "unknown"}, 404), ({"reviewer": " "}, 422), ({"labels": []}, 422)):
        assert (await scene.call("POST", "/api/skips", json=skip | wrong)).status_code == status
    scene.queue.recording_fails = True
    assert (await scene.call("POST", "/api/skips", json=skip)).status_code == 503


def press(key: str) -> KeyEventArguments:
    action = KeyboardAction(keydown=True, keyup=False, repeat=False)
    modifiers = KeyboardModifiers(alt=False, ctrl=False, meta=False, shift=key == "?")
    sender: Any = None
    return KeyEventArguments(
        sender=sender,
        client=sender,
        action=action,
        key=KeyboardKey(name=key, code=key, location=0),
        modifiers=modifiers,
    )


async def test_a_page_skips_for_good_and_has_a_key_for_cannot_tell(scene: Scene) -> None:
    await scene.queue.add_requests([ticket("t2"), question("q2")])
    for _ in range(2):  # A page that is opened anew skips nothing anew.
        with Client(page("")):
            review_page = ReviewPage(scene.reviews, "desk")
            review_page.reviewer = "ann"
            await review_page.draw()
            await review_page.on_key(press("ArrowRight"))
    assert await scene.skips() == {("t", "ann"), ("t2", "ann")}
    await review_page.on_key(press("?"))
    assert scene.published == [], "q is no pair"
    with Client(page("")):
        other = ReviewPage(scene.reviews, "desk")
        other.reviewer = "ben"
        await other.draw()
        await other.on_key(press("?"))
    assert [(key, given.answer.preference) for key, given in (await scene.given()).items()] == [
        (("t", "ben"), "cannot_tell")
    ]


async def test_a_page_goes_back_to_an_answer_and_changes_it_by_the_same_keys(scene: Scene) -> None:
    await scene.queue.add_requests([question("q2"), question("q3")])
    with Client(page("")):
        review_page = ReviewPage(scene.reviews, "desk")
        review_page.reviewer = "ann"
        await review_page.draw()
        for key in ("1", "1", "1"):
            await review_page.on_key(press(key))
        order = [request_id for request_id, _ in await scene.given()]
        assert len(order) == 3
        for key in ("ArrowLeft", "ArrowLeft", "2"):
            await review_page.on_key(press(key))
        labels = {request_id: given.answer.label for (request_id, _), given in (await scene.given()).items()}
        assert labels == {order[0]: "delivery", order[1]: "refund", order[2]: "delivery"}
        for key in ("ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowRight", "ArrowRight"):
            await review_page.on_key(press(key))
        assert await scene.skips() == set(), "what was answered is left as it is, not skipped"
        await review_page.on_key(press("2"))
    assert len(await scene.given()) == 4, "back at the open questions"
    assert len(scene.published) == 5


def keyboards(client: Client) -> list[int]:
    return [element.id for element in client.elements.values() if isinstance(element, ui.keyboard)]


async def test_a_key_that_was_pressed_before_the_next_question_was_seen_answers_nothing(scene: Scene) -> None:
    with Client(page("")) as client:
        review_page = await opened(scene, "ann")
        (first,) = keyboards(client)
        await review_page.on_key(press("1"))
        (second,) = keyboards(client)
    assert second != first, "what the browser sends of a keyboard that is gone reaches nobody"


async def opened(scene: Scene, reviewer: str) -> ReviewPage:
    review_page = ReviewPage(scene.reviews, "desk")
    review_page.reviewer = reviewer
    await review_page.draw()
    return review_page


async def test_a_review_page_is_refreshed_at_the_interval_that_is_set(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stored_name(_: str) -> str:
        return "ann"

    before = set(Client.page_routes)
    mount_review_page(scene.reviews, 7.5)
    (show,) = Client.page_routes.keys() - before  # Others in this process may have mounted theirs.
    monkeypatch.setattr(ui, "run_javascript", stored_name)
    with Client(page("")) as client:
        monkeypatch.setattr(client, "connected", lambda: asyncio.sleep(0))
        await show("desk")
        assert [e.interval for e in client.elements.values() if isinstance(e, ui.timer)] == [7.5]


async def test_a_page_that_is_refreshed_while_it_draws_shows_one_question(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.queue.add_requests([question("q2"), ticket("t2")])
    count = scene.reviews.count

    async def slow(task: str) -> dict[str, int]:
        await asyncio.sleep(0.01)
        return await count(task)

    monkeypatch.setattr(scene.reviews, "count", slow)
    with Client(page("")) as client:
        review_page = ReviewPage(scene.reviews, "desk")
        review_page.reviewer = "ann"
        await asyncio.gather(review_page.draw(), review_page.refresh())
        assert len(keyboards(client)) == 1
        await review_page.refresh()
        assert len(keyboards(client)) == 1
    assert review_page._questions_shown == 1


async def test_a_pairs_answer_stays_once_its_reviewer_has_seen_which_one_is_productions(scene: Scene) -> None:
    texts = {"labels": (), "prediction_id": "desk.9", "task_revision": "r9"}
    await scene.queue.add_requests([ticket("t9", ticket_id="t9", **texts), question("q9", **texts)])
    for preference in ("a", "b"):
        assert (await scene.correct("t9", label=None, preference=preference)).status_code == 200
    await scene.queue.skip("q9", "ann", scene.tick())
    assert (await scene.correct("t9", label=None, preference="b")).status_code == 200, "it is the same answer"
    refused = await scene.correct("t9", label=None, preference="a")
    assert refused.status_code == 422
    assert "whose answer is whose" in refused.text
    assert [event.preference for event in scene.published] == ["a", "b"]


async def test_reviewers_at_work_at_once_do_not_answer_the_same_questions(scene: Scene) -> None:
    await scene.queue.add_requests([question("q2"), question("q3"), ticket("t2"), ticket("t3")])
    with Client(page("")):
        pages = [await opened(scene, "ann"), await opened(scene, "ben")]
        for _ in range(3):
            for review_page in pages:
                await review_page.on_key(press("1"))
    assert sorted(request_id for request_id, _ in await scene.given()) == ["q", "q2", "q3", "t", "t2", "t3"]


async def test_what_another_page_shows_comes_last_until_that_page_is_left_or_its_reviewer_seems_to_be_away(
    scene: Scene,
) -> None:
    def shows(review_page: ReviewPage) -> str | None:
        return None if review_page._question is None else review_page._question.request_id

    with Client(page("")):
        pages = [await opened(scene, name) for name in ("ann", "ben", "cleo")]
        assert [shows(review_page) for review_page in pages] == ["t", "q", "t"], "nothing else is left for the third"
        for left in pages[1:]:
            left.close()
        assert shows(await opened(scene, "dan")) == "q"
        scene.clock += SHOWN_FOR
        assert shows(await opened(scene, "eve")) == "t"


async def test_before_the_tasks_are_read_no_answer_is_taken(scene: Scene) -> None:
    await scene.queue.add_requests([question("free", labels=())])
    patterns = (ExtraPattern(name="file", regex=r"F-\d{4}"),)
    own = SPEC.model_copy(update={"redaction": RedactionSettings(patterns=patterns)})
    scene.tasks._read.clear()
    assert (await scene.correct("free", label="see F-1234")).status_code == 503
    assert scene.published == []
    await scene.tasks.put("desk", TaskChanged(task="desk", task_revision=SPEC.revision, spec=own))
    scene.tasks._read.set()
    assert (await scene.correct("free", label="see F-1234")).status_code == 200
    assert "F-1234" not in str(scene.published)


async def test_no_other_site_shows_the_console_in_a_frame(scene: Scene) -> None:
    answers = [await scene.call("GET", path) for path in ("/api/queue/count?task=desk", "/docs", "/nothing")]
    assert [answer.status_code for answer in answers] == [200, 200, 404]
    assert {answer.headers["x-frame-options"] for answer in answers} == {"DENY"}


async def test_the_overview_tells_tasks_that_are_not_read_yet_from_none(tmp_path: Path, database: Database) -> None:
    scene = await Scene.of(tmp_path, database)
    scene.tasks._read.clear()
    ((title, _),) = await _overview(scene.reviews, scene.history, scene.tasks)
    assert title == "The tasks are not read yet"
    await scene.tasks.read_to({})
    ((title, _),) = await _overview(scene.reviews, scene.history, scene.tasks)
    assert title == "No task yet"


@pytest.mark.parametrize("typed", [" Jos\u00e9 Mar\u00eda ", "jose\u0301  mari\u0301a", "JOS\u00c9 MAR\u00cdA"])
def test_a_name_is_one_person_however_it_is_typed(typed: str) -> None:
    assert check_reviewer(typed) == "jos\u00e9 mar\u00eda"


@pytest.mark.parametrize("has_ended", [True, False])
async def test_a_page_says_that_an_edit_of_a_pair_moves_nothing_after_its_comparison(
    scene: Scene, has_ended: bool
) -> None:
    await scene.correct("t", label="delivery")
    if has_ended:
        await scene.end_comparison()
    with Client(page("")) as client:
        review_page = ReviewPage(scene.reviews, "desk")
        review_page.reviewer = "ann"
        await review_page.draw()
        await review_page.on_key(press("ArrowLeft"))
        texts = " ".join(str(element.props.get("innerHTML", "")) for element in client.elements.values())
    assert "Another answer takes the place of yours" in texts
    assert ("no longer moves anything" in texts) is has_ended


def test_a_label_is_at_most_as_long_as_a_text_of_an_event() -> None:
    check_answer(question(labels=()), ReviewAnswer(label="x" * MAX_TEXT))
    with pytest.raises(InvalidMessage, match="at most 3,145,728"):
        check_answer(question(labels=()), ReviewAnswer(label="x" * (MAX_TEXT + 1)))


async def test_an_answer_as_long_as_a_question_can_show_is_accepted(scene: Scene) -> None:
    await scene.queue.add_requests([question("free", labels=())])
    assert (await scene.correct("free", label='"' * QUESTION_BYTES)).status_code == 200


async def test_a_surrogate_copied_from_a_tools_result_or_a_tool_call_stays(scene: Scene) -> None:
    asked = question("free", labels=(), call=with_tools(result="x@example.com", arguments='{"to": "y@example.com"}'))
    await scene.queue.add_requests([asked])
    await scene.correct("free", label="x@example.com and y@example.com")
    assert [getattr(event, "redactions", None) for event in scene.published] == [0]


async def test_a_question_and_its_correction_carry_a_conversation_with_tools_and_what_was_cut(scene: Scene) -> None:
    asked = question("tools", call=with_tools(truncated=True), answers=(Answer(tool_calls=(FIND,), truncated=True),))
    await scene.queue.add_requests([asked])
    items = (await scene.call("GET", "/api/queue", params={"task": "desk", "reviewer": "ann"})).json()["items"]
    (item,) = [item for item in items if item["request_id"] == "tools"]
    assert Call.model_validate(item["call"]) == asked.call
    assert [Answer.model_validate(given) for given in item["answers"]] == list(asked.answers)
    await scene.correct("tools", label="refund")
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert (event.call, event.answers) == (asked.call, asked.answers)


async def test_a_body_over_the_limit_is_refused(scene: Scene) -> None:
    assert (await scene.correct(label="x" * 1_100_000)).status_code == 413


@pytest.mark.parametrize("body", [b"{oops", b"", b"[]", b"\xff"])
async def test_a_malformed_body_is_refused(scene: Scene, body: bytes) -> None:
    answer = await scene.call("POST", "/api/corrections", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


async def test_the_queue_alternates_tickets_and_other_questions(scene: Scene) -> None:
    await scene.queue.add_requests([question("q2", priority=0.4), question("q3", priority=0.3), ticket("t2")])
    answer = await scene.call("GET", "/api/queue", params={"task": "desk", "reviewer": "ann"})
    assert [item["request_id"] for item in answer.json()["items"]] == ["t", "q2", "t2", "q3", "q"]
    tickets = await scene.call(
        "GET", "/api/queue", params={"task": "desk", "reviewer": "a", "purpose": "discordant_pair"}
    )
    assert [item["request_id"] for item in tickets.json()["items"]] == ["t", "t2"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/queue?task=nope&reviewer=ann", 404),
        ("/api/queue/count?task=nope", 404),
        ("/api/queue?task=Nope!&reviewer=ann", 422),
        ("/api/queue?task=desk", 422),
        ("/api/queue?task=desk&reviewer=ann&limit=0", 422),
        ("/api/queue?task=desk&reviewer=ann&purpose=fun", 422),
    ],
)
async def test_an_invalid_queue_request_gets_a_reason(scene: Scene, path: str, status: int) -> None:
    answer = await scene.call("GET", path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_page_alternates_tickets_and_other_questions() -> None:
    with Client(page("")):
        review_page = ReviewPage(None, "desk")  # type: ignore[arg-type]  # the queue is not read
    shown_ids = [review_page._next_of(found).request_id for found in ([ticket(), question()], [ticket(), question()])]  # type: ignore[union-attr]
    assert shown_ids == ["t", "q"]
    assert review_page._next_of([]) is None
    assert review_page._next_of([ticket("t1"), ticket("t2")]).request_id == "t1"  # type: ignore[union-attr]


def test_a_question_is_shown_without_the_models_of_its_answers_and_why_they_ended() -> None:
    cut = Answer(text="ref", finish_reason=FinishReason.LENGTH)
    assert all("finish_reason" not in given for given in shown(ticket(answers=(cut, cut)))["answers"])
    assert set(shown(ticket())) == {
        "request_id", "prediction_id", "purpose", "call", "answers", "labels", "overlap", "suggestion",
    }  # fmt: skip


async def test_what_the_user_wrote_is_shown_and_can_be_taken(scene: Scene) -> None:
    await scene.queue.add_requests([question("w", suggestion="delivery"), question("x", suggestion="lost")])
    items = (await scene.call("GET", "/api/queue?task=desk&reviewer=ann")).json()["items"]
    assert {item["request_id"]: item["suggestion"] for item in items} == {
        "q": None, "t": None, "w": "delivery", "x": "lost",
    }  # fmt: skip
    assert acceptable_suggestion(question(suggestion="delivery")) == "delivery"
    assert acceptable_suggestion(question(suggestion="We are sorry.", labels=())) == "We are sorry."
    assert acceptable_suggestion(question(suggestion="lost")) is None, "it is none of the labels"
    assert acceptable_suggestion(ticket(suggestion="We are sorry.", labels=())) is None


def test_a_question_knows_who_else_wrote_its_suggestion_until_it_is_taken_out() -> None:
    def given(before: LabelRequested, newer: LabelRequested) -> tuple[str | None, ...]:
        after = with_suggestion(before, newer)
        return after.suggestion, after.user_hash, after.suggested_by

    asked = question("w", user_hash="u1")
    by_its_user = question("w", user_hash="u1", suggestion="lost")
    by_another = question("w", user_hash="u1", suggestion="lost", suggested_by="u2")
    assert given(asked, by_its_user) == given(by_another, by_its_user) == ("lost", "u1", None)
    assert given(question("w", user_hash=None), by_its_user) == ("lost", "u1", None), "only the feedback named the user"
    assert given(asked, by_another) == ("lost", "u1", "u2")
    assert given(question("w", user_hash="u3"), by_its_user) == ("lost", "u3", "u1")
    assert without_suggestion(with_suggestion(asked, by_another)) == asked


@pytest.mark.parametrize("asked_after", [timedelta(days=-1), timedelta(days=1)])
def test_what_a_forgotten_person_wrote_is_taken_out_whenever_it_was_asked_about(asked_after: timedelta) -> None:
    """It may have been written before they were forgotten, and asked about later."""
    wrote = question("w", user_hash="u1", suggestion="lost", suggested_by="u2")
    forgotten = ErasedSubjects({(wrote.task, "u2"): wrote.occurred_at - asked_after})
    assert without_erased_suggestion(wrote, forgotten) == without_suggestion(wrote)
    assert without_erased_suggestion(wrote, ErasedSubjects({("another-task", "u2"): wrote.occurred_at})) == wrote


async def test_a_surrogate_copied_from_what_the_user_wrote_stays(scene: Scene) -> None:
    text = "Please write to Maria Gonzalez."
    wrote = {"suggestion": text, "suggestion_surrogates": ("Ben Ode", "Maria Gonzalez")}
    await scene.queue.add_requests([question("w", labels=(), **wrote)])
    await scene.correct("w", label=text)
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert (event.label, event.redactions, event.surrogates) == (text, 0, ("Maria Gonzalez",))


async def test_a_question_of_an_earlier_revision_is_asked_with_the_labels_of_today(scene: Scene) -> None:
    spec = SPEC.model_copy(update={"labels": ("cancel", "shipping"), "renamed_labels": {"delivery": "shipping"}})
    await scene.tasks.put("desk", TaskChanged(task="desk", task_revision=spec.revision, spec=spec))
    await scene.queue.add_requests([question("w", suggestion="delivery")])
    items = (await scene.call("GET", "/api/queue?task=desk&reviewer=ann")).json()["items"]
    old = {item["request_id"]: (item["labels"], item["suggestion"]) for item in items}
    assert old["w"] == (["cancel", "shipping"], "shipping")
    assert "t" not in old, "a pair's arms answered with the labels of their revision"
    assert (await scene.correct("w", label="refund")).status_code == 422
    assert (await scene.correct("w", label="shipping")).status_code == 200
    (event,) = scene.published
    assert isinstance(event, CorrectionSubmitted)
    assert (event.label, event.task_revision) == ("shipping", SPEC.revision)


def test_interleaving_preserves_both_orders_and_the_limit() -> None:
    assert interleave([1, 2], [10, 20, 30, 40], 5) == [1, 10, 2, 20, 30]
    assert interleave([], [10, 20], 1) == [10]


def test_keys_go_from_one_to_nine_zero_and_letters() -> None:
    keys = keys_for(f"l{n}" for n in range(40))
    assert (keys["1"], keys["0"], keys["a"], keys["z"], len(keys)) == ("l0", "l9", "l10", "l35", 36)
