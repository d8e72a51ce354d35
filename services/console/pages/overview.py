"""The pages: an overview, a task's cycles, one cycle live. The review page is in `review.py`.

NiceGUI has one application per process: `mount_pages` passes to the pages what they read from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from html import escape

from fastapi import FastAPI
from nicegui import core, ui

from schemas.base import utc_now
from schemas.labels import Purpose
from schemas.tasks import TaskChanged
from services.console.domain import ReviewerCounts
from services.console.history import PostgresCycleHistory
from services.console.pages.cycle import Json, outcome_of, outcome_tag, sections, timeline
from services.console.pages.layout import (
    card,
    duration,
    figures,
    frame,
    html,
    link,
    moment,
    muted,
    number,
    page,
    table,
)
from services.console.pages.purposes import WORDS, open_questions
from services.console.pages.review import mount_review_page
from services.console.pages.rollout import rollout_parts
from services.console.reviews import Reviews
from shared.answers import answer_form
from shared.errors import RatchetError
from shared.kafka.latest_by_key import LatestByKey

_REFRESH_SECONDS = 2.0
"""Of an open page."""


def mount_pages(
    app: FastAPI,
    reviews: Reviews,
    history: PostgresCycleHistory,
    tasks: LatestByKey[TaskChanged],
) -> None:
    """Mount the pages on the API's application. They load nothing from the internet."""

    @page("/")
    async def overview() -> None:
        with frame("Overview"):
            html("<h1>Tasks</h1>")
            await _live(lambda: _overview(reviews, history, tasks))

    @page("/tasks/{task}")
    async def task_page(task: str) -> None:
        with frame(task, "cycles"):
            html(f"<h1>{escape(task)}</h1>")
            await _live(lambda: _task(reviews, history, tasks.get(task), task))

    @page("/cycles/{cycle_id}")
    async def cycle_page(cycle_id: str) -> None:
        with frame(cycle_id, "cycle"):
            await _live(lambda: _cycle(history, cycle_id))

    mount_review_page(reviews, _REFRESH_SECONDS)
    if core.app.middleware_stack is not None:  # A second console in the same process, as in tests.
        core.app.user_middleware.clear()
        core.app.middleware_stack = None
    ui.run_with(app, title="Ratchet", favicon="🔧", show_welcome_message=False, tailwind=False)


Card = tuple[str, list[str]]


async def _live(read: Callable[[], Awaitable[list[Card]]]) -> None:
    """Show cards, read them again every few seconds, and redraw them when they change. An empty title: no card."""
    drawn: list[Card] | None = None
    box = ui.element("div")

    async def draw() -> None:
        nonlocal drawn
        try:
            cards = await read()
        except RatchetError as error:
            cards = [("Unavailable", [muted(error.reason), muted(error.way_out)])]
        if cards == drawn:
            return
        drawn = cards
        box.clear()
        with box:
            for title, parts in cards:
                card(title, *parts) if title else html("".join(parts))

    await draw()
    ui.timer(_REFRESH_SECONDS, draw, immediate=False)


async def _overview(reviews: Reviews, history: PostgresCycleHistory, tasks: LatestByKey[TaskChanged]) -> list[Card]:
    """Return a card for each task. What it shows is read of all at once: the page is drawn anew every few seconds."""
    cards: list[Card] = []
    counts = await reviews.counts()
    serving, newest = await history.serving(counts), await history.newest_cycles(counts)
    answers = await history.predictions_since(counts, utc_now() - timedelta(days=1))
    for changed in sorted(tasks, key=lambda changed: changed.task):
        task, spec = changed.task, changed.spec
        waiting = counts.get(task, {})
        parts = [
            figures(
                open_questions=number(sum(waiting.values())),
                answers_in_the_last_day=number(answers.get(task, 0)),
                serves_everyone=serving.get(task) or "base model",
            ),
            muted(f"{spec.kind} · {spec.base_model} · {answer_form(spec).summary} · revision {changed.task_revision}"),
            muted(open_questions(waiting)) if any(waiting.values()) else "",
            muted(WORDS[Purpose.UNCALIBRATED].reason) if waiting.get(Purpose.UNCALIBRATED) else "",
            _newest_cycle(newest.get(task)),
            f"<p>{link(f'/review/{task}', 'Review answers')} &nbsp; {link(f'/tasks/{task}', 'All cycles')}</p>",
        ]
        cards.append((task, parts))
    if not tasks.is_read:
        cards.append(("The tasks are not read yet", [muted("Is Kafka there? ratchet status")]))
    return cards or [("No task yet", [muted("Apply one: ratchet tasks apply FILE.yaml")])]


def _newest_cycle(cycle: Json | None) -> str:
    if cycle is None:
        return muted("No cycle yet.")
    return f"<p>{link('/cycles/' + cycle['cycle_id'], cycle['cycle_id'])} &nbsp; {outcome_tag(cycle['outcome'])}</p>"


async def _task(reviews: Reviews, history: PostgresCycleHistory, changed: TaskChanged | None, task: str) -> list[Card]:
    cycles = await history.cycles(task)
    rows = [
        (
            link(f"/cycles/{c['cycle_id']}", c["cycle_id"]),
            outcome_tag(c["outcome"]),
            c["trigger"],
            duration((c["finished_at"] - c["started_at"]).total_seconds()) if c["finished_at"] else "–",
            c["reason"] or "",
        )
        for c in cycles
    ]
    heads = ("Cycle", "", "Started by", "Took", "Why")
    cards: list[Card] = [("Cycles", [table(heads, rows) if rows else muted("None yet.")])]
    if events := await history.running_rollout(task):
        about = link(f"/cycles/{events[-1]['cycle_id']}", events[-1]["candidate_adapter"])
        cards.insert(
            0, ("The candidate", [f"<p>{about} is compared with what serves now.</p>", *rollout_parts(events)])
        )
    if changed is not None:
        cards += reviewers_card(await reviews.reviewers(task))
        spec, form = changed.spec, answer_form(changed.spec)
        definition = [
            ("System prompt", spec.system_prompt),
            (form.parts_title, ", ".join(form.parts) or "free text"),
            ("Base model", spec.base_model),
            ("Cron, UTC", spec.cron),
            ("Revision", spec.revision),
        ]
        cards.append(("The task", [table(("", ""), definition)]))
    return cards


def reviewers_card(counts: Sequence[ReviewerCounts]) -> list[Card]:
    """Return a card that shows who leaves how much to others; none while nobody has reviewed."""
    rows = [(c.reviewer, number(c.answers), number(c.cannot_tell), number(c.skipped)) for c in counts]
    note = muted("Of the questions that are still stored. What is skipped, or could not be told, is for somebody else.")
    return [("Reviewers", [table(("Reviewer", "Answered", "Could not tell", "Skipped"), rows), note])] if rows else []


async def _cycle(history: PostgresCycleHistory, cycle_id: str) -> list[Card]:
    records = await history.events(cycle_id)
    if not records:
        return [("No such cycle", [muted(f"The console has no events of {cycle_id}.")])]
    task = records[0]["event"]["task"]
    progress = await history.progress(cycle_id)
    states = timeline(records, utc_now(), progress)
    head = (
        f"<h1>{escape(cycle_id)}</h1>{outcome_tag(outcome_of(records))} &nbsp; "
        f"<span class=muted>started {moment(records[0]['occurred_at'])} UTC</span> &nbsp; "
        f"{link(f'/tasks/{task}', task)}"
    )
    steps = "".join(
        f"<div class='step {s.state}'><b>{s.step}</b><span class=muted>{escape(s.note)}</span></div>" for s in states
    )
    parts = [head, f"<div class=steps>{steps}</div>"]
    running = next((s.step for s in states if s.state == "go"), None)
    if progress is not None and progress["step"] == running:
        parts.append(_progress_bar(progress))
    return [("", parts), *sections(records, await history.losses(cycle_id))]


def _progress_bar(progress: Json) -> str:
    share = min(1.0, progress["done"] / progress["total"])
    text = f"{progress['step']}: {share:.0%} {progress['message']}"
    return f"<p class='small muted'><progress value='{share:.3f}' style='width: 240px'></progress> {escape(text)}</p>"
