"""The look of the pages: a style sheet, a frame, and small pieces of HTML whose text is always escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from nicegui import ui

from shared.report.html import STYLE

_STYLE = Path(__file__).with_name("layout.css")


_RESPONSE_SECONDS = 60.0
"""How long a page may take to be built: a browser waits, and an error after NiceGUI's 3 s helps nobody whose database
is busy."""


def page(path: str) -> ui.page:
    """Register the decorated function as the page at a path."""
    return ui.page(path, response_timeout=_RESPONSE_SECONDS)


@contextmanager
def frame(title: str, note: str = "") -> Iterator[None]:
    """Show a page's header, and its content in a column."""
    ui.page_title(f"{title} · Ratchet")
    ui.add_css(STYLE)
    ui.add_css(_STYLE)
    ui.colors(primary="#2f5f8a")
    with ui.element("div").classes("bar"), ui.element("div"):
        html('<a href="/">Ratchet</a>' + (f"<span>{escape(note)}</span>" if note else ""))
    with ui.element("div").classes("page"):
        yield


def html(markup: str, classes: str = "") -> None:
    """Show markup whose text is escaped already."""
    ui.html(markup, sanitize=False).classes(classes)


def card(title: str, *parts: str) -> None:
    """Show a white card with a heading."""
    html(f"<h2>{escape(title)}</h2>{''.join(parts)}", "card")


def figures(**values: Any) -> str:
    """Return large numbers with small names: the arguments' names, with spaces for underscores."""
    cells = (
        f"<div class=figure><b>{escape(str(value))}</b><span>{escape(name.replace('_', ' '))}</span></div>"
        for name, value in values.items()
    )
    return f'<div class="row">{"".join(cells)}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table. A cell that is `Markup` is not escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


def link(target: str, text: str) -> Markup:
    """Return a link inside the console."""
    return Markup(f'<a href="{escape(target, quote=True)}">{escape(text)}</a>')


def tag(text: str, kind: str = "") -> Markup:
    """Return a pill. `kind`: good, bad, go (running), open (unknown) or empty."""
    return Markup(f'<span class="tag {kind}">{escape(text)}</span>')


def muted(text: str) -> Markup:
    """Return a paragraph in small grey type."""
    return Markup(f'<p class="muted small">{escape(text)}</p>')


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with separators; – for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1_000 else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share as a percentage; – for None."""
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def moment(value: datetime | str | None) -> str:
    """Return a time in UTC; – for None."""
    if value is None:
        return "–"
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{at.astimezone(UTC):%d %b %H:%M:%S}"


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units. Clocks of two machines may differ: none is below 0."""
    minutes, remainder = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {remainder} s" if minutes else f"{remainder} s"


def _cell(value: Any) -> str:
    if isinstance(value, Markup):
        return f"<td>{value}</td>"
    kind = ' class="num"' if isinstance(value, int | float) else ""
    text = number(value) if isinstance(value, float) else str(value)
    return f"<td{kind}>{escape(text)}</td>"
