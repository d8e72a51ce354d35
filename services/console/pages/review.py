"""The review page: one question at a time, one key per answer.

Reviews are blind. For a label task the model's answers are not shown: the question is the true label, and a visible
answer invites agreement. What a user wrote is shown, except in the audit, which production is measured by. For a pair
of free texts both are shown in the order of the event, without their models.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from html import escape

from nicegui import events, ui

from schemas.labels import LabelRequested, Preference
from schemas.tasks import TaskSpec
from services.console.domain import (
    AnsweredQuestion,
    GivenAnswer,
    ReviewAnswer,
    acceptable_suggestion,
    asks_preference,
    check_reviewer,
    keys_for,
    takes_cannot_tell,
)
from services.console.pages.conversation import answer, conversation, is_text_alone
from services.console.pages.forms import CallForm, LabelForm
from services.console.pages.layout import frame, html, note, page
from services.console.pages.purposes import WORDS
from services.console.reviews import Reviews, UnknownError
from shared.answers import answer_form
from shared.errors import RatchetError

CANNOT_TELL = "I cannot tell"
PREFERENCES: dict[str, tuple[Preference, str]] = {
    "1": ("a", "A is better"),
    "2": ("b", "B is better"),
    "3": ("both_right", "Both are right"),
    "4": ("both_wrong", "Both are wrong"),
    "5": ("cannot_tell", CANNOT_TELL),
}
CANNOT_TELL_KEY = "?"
"""Of a pair of labels, whose keys are digits and letters."""
SKIP_KEY = "ArrowRight"
"""Of an answer that the reviewer went back to: leaves it as it is."""
BACK_KEY = "ArrowLeft"
DONE_KEY = "."
"""Of several labels: those that are ticked are right."""
TAKE_KEY = "+"
"""Takes what the user wrote. Not Enter, which presses the button that has the focus."""
_REVIEWER_KEY = "ratchet.reviewer"  # In the browser's local storage.
_NOTHING_OPEN = "New questions appear here by themselves."
_FOR_OTHERS = (
    "The open questions are for others: you skipped them, could not tell, or have answered. What you skipped comes "
    "back to you if nobody else reviews."
)
_GONE_BACK = "You have answered this. Another answer takes the place of yours; → leaves it as it is."
_ENDED = (
    "The comparison that this pair was part of has ended: another answer no longer moves anything in it. A label can "
    "still be trained on."
)


def mount_review_page(reviews: Reviews, refresh_seconds: float) -> None:
    """Register `/review/{task}`. An open page is refreshed at this interval."""

    @page("/review/{task}")
    async def review(task: str) -> None:
        with frame(f"Review {task}", f"review · {task}"):
            await ui.context.client.connected()
            review_page = ReviewPage(reviews, task)
            stored_name = await ui.run_javascript(f"localStorage.getItem({json.dumps(_REVIEWER_KEY)})")
            ui.context.client.on_delete(review_page.close)
            ui.timer(refresh_seconds, review_page.refresh, immediate=False)
            if isinstance(stored_name, str):
                review_page.reviewer = stored_name
            await review_page.draw()


class ReviewPage:
    """One reviewer's open page."""

    def __init__(self, reviews: Reviews, task: str) -> None:
        self.reviewer = ""
        self._reviews = reviews
        self._task = task
        self._question: LabelRequested | None = None
        self._path: list[AnsweredQuestion] = []
        """The answers that the reviewer went back over; the last one is shown."""
        self._shown_at = 0.0
        self._answered = 0
        self._questions_shown = 0
        self._answer_seconds = 0.0
        self._busy = False
        self._drawing = asyncio.Lock()
        self._labels: LabelForm | None = None
        self._box = ui.element("div")

    async def draw(self) -> None:
        """Show the answer that the reviewer went back to, else the next question, or ask for the reviewer's name."""
        async with self._drawing:  # Two at once would show two questions, and one's buttons would answer the other.
            await self._draw()

    async def _draw(self) -> None:
        self._box.clear()
        self._labels = None
        self.close()
        with self._box:
            # Each question has its own: what was pressed before the next one was seen is of a keyboard that is gone.
            ui.keyboard(on_key=self.on_key, ignore=["input", "textarea", "select"])
            if not self.reviewer:
                self._ask_name()
                return
            try:
                waiting = sum((await self._reviews.count(self._task)).values())
                questions = [] if self._path else await self._reviews.questions_of_page(self, self._task, self.reviewer)
            except RatchetError as error:
                self._question = None
                html(f"<h1>{escape(error.reason)}</h1>{note(error.way_out)}")
                return
            self._question = self._path[-1].request if self._path else self._next_of(questions)
            self._reviews.show(self, None if self._path else self._question)
            self._shown_at = time.monotonic()
            self._head(waiting)
            if self._path:
                html(note(_GONE_BACK) + (f"<div class=note>{_ENDED}</div>" if self._path[-1].ended else ""))
            if self._question is None:
                html(f"<h1>Nothing to review.</h1>{note(_FOR_OTHERS if waiting else _NOTHING_OPEN)}", "card")
            else:
                self._show(self._question)

    def close(self) -> None:
        """Leave the question that is shown to others."""
        self._reviews.show(self, None)

    def _next_of(self, questions: list[LabelRequested]) -> LabelRequested | None:
        """Alternate tickets and other questions, as the queue does: a page reads only the first ones each time."""
        self._questions_shown += 1
        is_tickets_turn = self._questions_shown % 2 == 1
        wanted = [question for question in questions if (question.ticket_id is not None) is is_tickets_turn]
        return next(iter(wanted or questions), None)

    async def refresh(self) -> None:
        """Redraw if the queue was empty, or if the question was deleted because its person was erased."""
        if not self.reviewer or self._busy or self._drawing.locked():
            return
        shown = self._question
        with contextlib.suppress(RatchetError):  # The page stays as it is while the database is unavailable.
            is_over = shown is None or await self._reviews.is_gone(shown.request_id)
            if is_over and shown is self._question and not self._drawing.locked():
                self._path.clear()
                await self.draw()

    async def on_key(self, event: events.KeyEventArguments) -> None:
        """Answer or skip the question, or go back to the last answer, by one key."""
        has_modifier = event.modifiers.ctrl or event.modifiers.alt or event.modifiers.meta
        if not event.action.keydown or event.action.repeat or has_modifier:
            return
        key = str(event.key.name)
        if key == BACK_KEY:
            await self._back()
        elif self._question is None:
            return
        elif key == SKIP_KEY:
            await self._skip()
        elif key == TAKE_KEY and (suggestion := acceptable_suggestion(self._question)) is not None:
            await self._answer(label=suggestion)
        elif self._labels is not None:
            if key == DONE_KEY:
                await self._answer(label=self._labels.answer())
            else:
                self._labels.press(key)
        elif asks_preference(self._question):
            if key in PREFERENCES:
                await self._answer(preference=PREFERENCES[key][0])
        elif key == CANNOT_TELL_KEY and takes_cannot_tell(self._question):
            await self._answer(preference="cannot_tell")
        elif (label := keys_for(self._question.labels).get(key.lower())) is not None:
            await self._answer(label=label)

    def _ask_name(self) -> None:
        async def start() -> None:
            try:
                self.reviewer = check_reviewer(name.value or "")
            except RatchetError as error:
                ui.notify(error.reason)
                return
            ui.run_javascript(f"localStorage.setItem({json.dumps(_REVIEWER_KEY)}, {json.dumps(self.reviewer)})")
            await self.draw()

        html("<h1>Who is reviewing?</h1>" + note("Your name goes with your answers. This browser remembers it."))
        name = ui.input("Name").classes("name").props("autofocus outlined").on("keydown.enter", start)
        ui.button("Start", on_click=start).props("unelevated no-caps").style("margin-top: 14px")

    def _head(self, waiting: int) -> None:
        async def change_reviewer() -> None:
            self.reviewer = ""
            self._path.clear()
            await self.draw()

        pace = f" · {self._answer_seconds / self._answered:.1f} s each" if self._answered else ""
        with ui.element("div").classes("row").style("align-items: center"):
            html(
                f"<span class=muted>{waiting:,} open · {self._answered} answered{pace} · {escape(self.reviewer)}</span>"
            )
            ui.button("← last answer", on_click=self._back).props("flat dense no-caps size=sm")
            ui.button("not you?", on_click=change_reviewer).props("flat dense no-caps size=sm")

    def _show(self, question: LabelRequested) -> None:
        spec = self._reviews.spec_of(question.task)
        editor = "text" if spec is None or asks_preference(question) else answer_form(spec).editor
        html(note(WORDS[question.purpose].reason))
        html(conversation(question.call), "card beside" if asks_preference(question) else "card")
        if asks_preference(question):
            html(_sides(question))
        elif not (question.labels or editor == "ticks"):
            for given in question.answers:
                if question.suggestion or not is_text_alone(given):
                    html(f"<h2>The answer that was given</h2>{answer(given)}", "card")
        if question.suggestion is not None:
            self._suggestion(question, question.suggestion)
        if self._path:
            html(f"<h2>Your answer</h2><div class=said>{escape(_words(self._path[-1].given))}</div>", "card")
        with ui.element("div").classes("answers"):
            if asks_preference(question):
                for key, (preference, text) in PREFERENCES.items():
                    self._button(key, text, preference=preference)
            elif question.labels:
                keys = {label: key for key, label in keys_for(question.labels).items()}
                for label in question.labels:
                    self._button(keys.get(label, ""), label, label=label)
                if takes_cannot_tell(question):
                    self._button(CANNOT_TELL_KEY, CANNOT_TELL, preference="cannot_tell")
        if editor == "ticks" and spec is not None:
            self._ticks(spec)
        elif not question.labels and not asks_preference(question):
            self._text(question, spec)
        leave = ui.button("Leave it  →" if self._path else "Skip  →", on_click=self._skip)
        leave.props("flat no-caps").style("margin-top: 14px")

    def _suggestion(self, question: LabelRequested, text: str) -> None:
        """Show what the user wrote, with a button to take it where it can be an answer."""
        html(f"<h2>The user wrote</h2><div class=said>{escape(text)}</div>", "card")
        if acceptable_suggestion(question) is not None:
            with ui.element("div").classes("answers"):
                self._button(TAKE_KEY, "Take this", label=text)

    def _button(self, key: str, text: str, *, label: str | None = None, preference: Preference | None = None) -> None:
        async def choose() -> None:
            await self._answer(label=label, preference=preference)

        with ui.button(on_click=choose, color=None).props("flat no-caps"):
            html((f"<kbd>{escape(key)}</kbd> " if key else "") + escape(text))

    def _ticks(self, spec: TaskSpec) -> None:
        form = self._labels = LabelForm(spec.labels, (self._path[-1].given.answer.label or "") if self._path else "")
        form.draw()

        async def submit() -> None:
            await self._answer(label=form.answer())

        with ui.button(on_click=submit).props("unelevated no-caps").style("margin-top: 10px"):
            html(f"<kbd>{escape(DONE_KEY)}</kbd> These are right")

    def _text(self, question: LabelRequested, spec: TaskSpec | None) -> None:
        async def submit() -> None:
            await self._answer(label=text.value or "")

        draft = (self._path[-1].given.answer.label or "") if self._path else _draft(question)
        form = None if spec is None else answer_form(spec)
        if form is not None and form.editor == "calls":
            self._calls(form.spec, draft)
            return

        def problem(written: str) -> str | None:
            found = None if form is None else form.problem(written)
            return None if found is None else str(found)

        text = ui.textarea(
            "The answer as it should be",
            value=draft if form is None else form.laid_out(draft),
            validation=problem,
        ).props("outlined autogrow")
        text.style("width: 100%; margin-top: 18px")
        ui.button("This is right", on_click=submit).props("unelevated no-caps").style("margin-top: 10px")

    def _calls(self, spec: TaskSpec, draft: str) -> None:
        form = CallForm(spec, draft)
        form.draw()

        async def submit() -> None:
            try:
                label = form.answer()
            except RatchetError as error:
                ui.notify(error.reason, type="warning")
                return
            await self._answer(label=label)

        ui.button("This is right", on_click=submit).props("unelevated no-caps").style("margin-top: 10px")

    async def _skip(self) -> None:
        async def skip(question: LabelRequested) -> None:
            if self._path:
                self._path.pop()
            else:
                await self._reviews.skip(question.request_id, self.reviewer)

        await self._act(skip)

    async def _back(self) -> None:
        """Show what the reviewer answered before what is shown."""
        if not self.reviewer or self._busy:
            return
        self._busy = True
        try:
            before = self._path[-1].given.at if self._path else None
            if found := await self._reviews.answers(self._task, self.reviewer, 1, before):
                self._path += found
                await self.draw()
            else:
                ui.notify("You have answered nothing before this.")
        except RatchetError as error:
            ui.notify(f"{error.reason} {error.way_out}".strip(), type="warning")
        finally:
            self._busy = False

    async def _answer(self, *, label: str | None = None, preference: Preference | None = None) -> None:
        async def submit(question: LabelRequested) -> None:
            seconds = time.monotonic() - self._shown_at
            answer = ReviewAnswer(label, preference, seconds)
            receipt = await self._reviews.answer(question.request_id, self.reviewer, answer)
            if receipt.counted and not self._path:
                self._answered += 1
                self._answer_seconds += seconds
            elif not receipt.counted:
                ui.notify("This one had all its answers already: yours was not needed.")
            self._path.clear()

        await self._act(submit)

    async def _act(self, action: Callable[[LabelRequested], Awaitable[None]]) -> None:
        """Do something with the question that is shown, and show the next one."""
        if self._question is None or self._busy:
            return
        self._busy = True  # Otherwise a second key press would answer the next question before it is shown.
        try:
            await action(self._question)
            await self.draw()
        except UnknownError:
            ui.notify("This question was withdrawn.", type="warning")
            self._path.clear()
            await self.draw()
        except RatchetError as error:
            ui.notify(f"{error.reason} {error.way_out}".strip(), type="warning")
        finally:
            self._busy = False


def _sides(question: LabelRequested) -> str:
    """Return both answers of a pair, each in the same way."""
    a, b = (
        f"<div class='card side'><h2>{name}</h2>{answer(given)}</div>"
        for name, given in zip("AB", question.answers, strict=True)
    )
    return f"<div class=sides>{a}{b}</div>"


def _words(given: GivenAnswer) -> str:
    """Return an answer as the reviewer gave it."""
    if given.answer.preference is None:
        return given.answer.label or ""
    return next(text for preference, text in PREFERENCES.values() if preference == given.answer.preference)


def _draft(question: LabelRequested) -> str:
    """Return the text that a reviewer starts from: the user's, else the answer that was given, if the event has it."""
    if question.suggestion is not None:
        return question.suggestion
    return next((given.plain for given in question.answers[:1] if not given.truncated), "")
