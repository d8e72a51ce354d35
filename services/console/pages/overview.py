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
from services.console.pages.layout import card, frame, html, page
from services.console.pages.purposes import WORDS, open_questions
from services.console.pages.review import mount_review_page
from services.console.reviews import Reviews
from shared.answers import answer_form
from shared.errors import RatchetError
from shared.kafka.latest_by_key import LatestByKey
from shared.report.blocks import Block, Cell, Figures, Link, Table, Tag, Text
from shared.report.html import fragment
from shared.report.rollout import rollout_blocks
from shared.report.written import duration, written

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


Card = tuple[str, Sequence[Block] | str]
"""A title and what is below it; HTML that has its own title."""


async def _live(read: Callable[[], Awaitable[list[Card]]]) -> None:
    """Show cards, read them again every few seconds, and redraw them when they change."""
    drawn: list[Card] | None = None
    box = ui.element("div")

    async def draw() -> None:
        nonlocal drawn
        try:
            cards = await read()
        except RatchetError as error:
            cards = [("Unavailable", [Text(error.reason), Text(error.way_out, "note")])]
        if cards == drawn:
            return
        drawn = cards
        box.clear()
        with box:
            for title, content in cards:
                html(content) if isinstance(content, str) else card(title, content)

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
        figures: dict[str, Cell] = {
            "open questions": sum(waiting.values()),
            "answers in the last day": answers.get(task, 0),
            "serves everyone": serving.get(task) or "base model",
        }
        about = f"{spec.kind} · {spec.base_model} · {answer_form(spec).summary} · revision {changed.task_revision}"
        cycle = newest.get(task)
        blocks: list[Block] = [
            Figures(figures),
            Text(about, "note"),
            Text(open_questions(waiting), "note"),
            Text(WORDS[Purpose.UNCALIBRATED].reason if waiting.get(Purpose.UNCALIBRATED) else "", "note"),
            Table(("", ""), [_cycle_cells(cycle)]) if cycle else Text("No cycle yet.", "note"),
            Link("Review answers", f"/review/{task}"),
            Link("All cycles", f"/tasks/{task}"),
        ]
        cards.append((task, blocks))
    if not tasks.is_read:
        cards.append(("The tasks are not read yet", [Text("Is Kafka there? ratchet status", "note")]))
    return cards or [("No task yet", [Text("Apply one: ratchet tasks apply FILE.yaml", "note")])]


def _cycle_cells(cycle: Json) -> tuple[Link, Tag]:
    return Link(cycle["cycle_id"], f"/cycles/{cycle['cycle_id']}"), outcome_tag(cycle["outcome"])


async def _task(reviews: Reviews, history: PostgresCycleHistory, changed: TaskChanged | None, task: str) -> list[Card]:
    cycles = await history.cycles(task)
    rows = [
        (
            *_cycle_cells(c),
            c["trigger"],
            duration((c["finished_at"] - c["started_at"]).total_seconds()) if c["finished_at"] else None,
            c["reason"] or "",
        )
        for c in cycles
    ]
    cycles_table = Table(("cycle", "", "started by", "took", "why"), rows)
    cards: list[Card] = [("Cycles", [cycles_table if rows else Text("None yet.", "note")])]
    if events := await history.running_rollout(task):
        about = Link(
            f"{events[-1]['candidate_adapter']} is compared with what serves now", f"/cycles/{events[-1]['cycle_id']}"
        )
        cards.insert(0, ("The candidate", [about, *rollout_blocks(events)]))
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
        cards.append(("The task", [Table(("", ""), definition)]))
    return cards


def reviewers_card(counts: Sequence[ReviewerCounts]) -> list[Card]:
    """Return a card that shows who leaves how much to others; none while nobody has reviewed."""
    rows = [(c.reviewer, c.answers, c.cannot_tell, c.skipped) for c in counts]
    note = "Of the questions that are still stored. What is skipped, or could not be told, is for somebody else."
    columns = ("reviewer", "answered", "could not tell", "skipped")
    return [("Reviewers", [Table(columns, rows), Text(note, "note")])] if rows else []


async def _cycle(history: PostgresCycleHistory, cycle_id: str) -> list[Card]:
    records = await history.events(cycle_id)
    if not records:
        return [("No such cycle", [Text(f"The console has no events of {cycle_id}.", "note")])]
    task = records[0]["event"]["task"]
    progress = await history.progress(cycle_id)
    states = timeline(records, utc_now(), progress)
    figures: dict[str, Cell] = {
        "outcome": outcome_tag(outcome_of(records)),
        "started, UTC": written(records[0]["occurred_at"]),
        "task": Link(task, f"/tasks/{task}"),
    }
    steps = "".join(
        f"<div class='step {s.state}'><b>{s.step}</b><span class=muted>{escape(s.note)}</span></div>" for s in states
    )
    running = next((s.step for s in states if s.state == "go"), None)
    bar = _progress_bar(progress) if progress is not None and progress["step"] == running else ""
    head = f"<h1>{escape(cycle_id)}</h1>{fragment([Figures(figures)])}<div class=steps>{steps}</div>{bar}"
    return [("", head), *sections(records, await history.losses(cycle_id))]


def _progress_bar(progress: Json) -> str:
    share = min(1.0, progress["done"] / progress["total"])
    text = f"{progress['step']}: {share:.0%} {progress['message']}"
    return f"<p class='small muted'><progress value='{share:.3f}' style='width: 240px'></progress> {escape(text)}</p>"
