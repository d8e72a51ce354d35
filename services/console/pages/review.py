"""The review queue: one question at a time, one key per answer.

What is shown is blind. For a label task the model's answers are not shown at all: the true label is asked, and an
answer that is there to read would be agreed with. For a pair of free texts both sides are, in the order in which
they came, and nothing says whose they are.
"""

from __future__ import annotations

import contextlib
import json
import time
from html import escape

from nicegui import events, ui

from schemas.base import Role
from schemas.labels import LabelRequested
from schemas.tasks import TaskChanged
from services.console.domain import Preference, ReviewAnswer, asks_preference, check_reviewer, keys_for
from services.console.pages.layout import frame, html, soft
from services.console.reviews import Reviews, UnknownError
from shared.errors import RatchetError
from shared.kafka.latest_by_key import LatestByKey

PREFERENCES: dict[str, tuple[Preference, str]] = {
    "1": ("a", "A is better"),
    "2": ("b", "B is better"),
    "3": ("both_right", "Both are right"),
    "4": ("both_wrong", "Both are wrong"),
    "5": ("cannot_tell", "I cannot tell"),
}
SKIP_KEY = "ArrowRight"
_REMEMBERED = "ratchet.reviewer"
_IDLE_SECONDS = 2.0


def mount_review_page(reviews: Reviews, tasks: LatestByKey[TaskChanged]) -> None:
    """Register `/review/{task}`."""

    @ui.page("/review/{task}")
    async def review(task: str) -> None:
        with frame(f"Review {task}", f"review · {task}"):
            await ui.context.client.connected()
            desk = ReviewPage(reviews, task)
            remembered = await ui.run_javascript(f"localStorage.getItem({json.dumps(_REMEMBERED)})")
            ui.keyboard(on_key=desk.on_key, ignore=["input", "textarea", "select"])
            ui.timer(_IDLE_SECONDS, desk.look_again, immediate=False)
            if isinstance(remembered, str):
                desk.reviewer = remembered
            await desk.draw()


class ReviewPage:
    """One reviewer's open page."""

    def __init__(self, reviews: Reviews, task: str) -> None:
        self.reviewer = ""
        self._reviews = reviews
        self._task = task
        self._question: LabelRequested | None = None
        self._shown_at = 0.0
        self._skipped: set[str] = set()
        self._done = 0
        self._turn = 0
        self._seconds = 0.0
        self._busy = False
        self._box = ui.element("div")

    async def draw(self) -> None:
        """Show the next question, or ask who is there."""
        self._box.clear()
        with self._box:
            if not self.reviewer:
                self._ask_name()
                return
            try:
                found = await self._reviews.questions(self._task, self.reviewer, 2, skipped=self._skipped)
                waiting = sum((await self._reviews.count(self._task)).values())
            except RatchetError as error:
                self._question = None
                html(f"<h1>{escape(error.reason)}</h1>{soft(error.way_out)}")
                return
            self._question = self._next_of(found)
            self._shown_at = time.monotonic()
            self._head(waiting)
            if self._question is None:
                html("<h1>Nothing to review.</h1>" + soft("New questions appear here by themselves."), "card")
            else:
                self._show(self._question)

    def _next_of(self, found: list[LabelRequested]) -> LabelRequested | None:
        """A ticket, then something else, in turn, like the queue itself, of which a page sees two at a time."""
        self._turn += 1
        others = [question for question in found if question.ticket_id is None]
        return next(iter(others if others and self._turn % 2 == 0 else found), None)

    async def look_again(self) -> None:
        """An empty queue may have filled; a question whose person was forgotten is not shown any longer."""
        if not self.reviewer or self._busy:
            return
        with contextlib.suppress(RatchetError):  # What is shown stays while the database is away.
            if self._question is None or await self._reviews.is_gone(self._question.request_id):
                await self.draw()

    async def on_key(self, event: events.KeyEventArguments) -> None:
        """One key, one answer."""
        held = event.modifiers.ctrl or event.modifiers.alt or event.modifiers.meta
        if self._question is None or not event.action.keydown or event.action.repeat or held:
            return
        key = str(event.key.name)
        if key == SKIP_KEY:
            await self._skip()
        elif asks_preference(self._question):
            if key in PREFERENCES:
                await self._answer(preference=PREFERENCES[key][0])
        elif (label := keys_for(self._question.labels).get(key.lower())) is not None:
            await self._answer(label=label)

    def _ask_name(self) -> None:
        async def remember() -> None:
            try:
                self.reviewer = check_reviewer(name.value or "")
            except RatchetError as error:
                ui.notify(error.reason)
                return
            ui.run_javascript(f"localStorage.setItem({json.dumps(_REMEMBERED)}, {json.dumps(self.reviewer)})")
            await self.draw()

        html("<h1>Who is reviewing?</h1>" + soft("Your name goes with your answers. This browser remembers it."))
        name = ui.input("Name").classes("name").props("autofocus outlined").on("keydown.enter", remember)
        ui.button("Start", on_click=remember).props("unelevated no-caps").style("margin-top: 14px")

    def _head(self, waiting: int) -> None:
        async def other() -> None:
            self.reviewer = ""
            await self.draw()

        pace = f" · {self._seconds / self._done:.1f} s each" if self._done else ""
        with ui.element("div").classes("row").style("align-items: center"):
            html(f"<span class=soft>{waiting:,} open · {self._done} answered{pace} · {escape(self.reviewer)}</span>")
            ui.button("not you?", on_click=other).props("flat dense no-caps size=sm")

    def _show(self, question: LabelRequested) -> None:
        html(_conversation(question), "card")
        if asks_preference(question):
            a, b = (
                f"<div class='card side'><h2>{n}</h2>{escape(t)}</div>"
                for n, t in zip("AB", question.answers, strict=True)
            )
            html(f"<div class=row>{a}{b}</div>")
        with ui.element("div").classes("answers"):
            if asks_preference(question):
                for key, (preference, text) in PREFERENCES.items():
                    self._button(key, text, preference=preference)
            elif question.labels:
                keys = {label: key for key, label in keys_for(question.labels).items()}
                for label in question.labels:
                    self._button(keys.get(label, ""), label, label=label)
        if not question.labels and not asks_preference(question):
            self._text(question)
        ui.button("Skip  →", on_click=self._skip).props("flat no-caps").style("margin-top: 14px")

    def _button(self, key: str, text: str, *, label: str | None = None, preference: Preference | None = None) -> None:
        async def choose() -> None:
            await self._answer(label=label, preference=preference)

        with ui.button(on_click=choose, color=None).props("flat no-caps"):
            html((f"<kbd>{escape(key)}</kbd> " if key else "") + escape(text))

    def _text(self, question: LabelRequested) -> None:
        async def submit() -> None:
            await self._answer(label=text.value or "")

        text = ui.textarea("The answer as it should be", value=question.answers[0]).props("outlined autogrow")
        text.style("width: 100%; margin-top: 18px")
        ui.button("This is right", on_click=submit).props("unelevated no-caps").style("margin-top: 10px")

    async def _skip(self) -> None:
        if self._question is not None and not self._busy:
            self._skipped.add(self._question.request_id)
            await self.draw()

    async def _answer(self, *, label: str | None = None, preference: Preference | None = None) -> None:
        if self._question is None or self._busy:
            return
        self._busy = True  # A second key while the first is on its way would answer a question not yet seen.
        seconds = time.monotonic() - self._shown_at
        try:
            answer = ReviewAnswer(label, preference, seconds)
            receipt = await self._reviews.answer(self._question.request_id, self.reviewer, answer)
            if receipt.counted:
                self._done += 1
                self._seconds += seconds
            await self.draw()
        except UnknownError:
            ui.notify("This question was withdrawn.", type="warning")
            await self.draw()
        except RatchetError as error:
            ui.notify(f"{error.reason} {error.way_out}".strip(), type="warning")
        finally:
            self._busy = False


def _conversation(question: LabelRequested) -> str:
    """What was asked; the system prompt small, the last message big."""
    parts = []
    for message in question.messages:
        size = "soft small" if message.role is not Role.USER else "question"
        parts.append(f"<div class='{size}'>{escape(message.content)}</div>")
    return "".join(parts)
