"""The look of the pages: a style sheet, a frame, and small pieces of HTML whose text is always escaped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

from markupsafe import Markup
from nicegui import ui

from shared.grading.json_values import json_or_nothing
from shared.report.blocks import Block, Text
from shared.report.html import STYLE, fragment

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


def laid_out(text: str) -> str:
    """JSON with indents; as it is any other text, and JSON of which more would change than space and escapes: an amount
    its cents (10.00)."""
    value = json_or_nothing(text)
    if not isinstance(value, dict | list):
        return text
    written = ("".join(json.dumps(value, ensure_ascii=is_ascii).split()) for is_ascii in (True, False))
    return json.dumps(value, indent=2, ensure_ascii=False) if "".join(text.split()) in written else text


def card(title: str, blocks: Sequence[Block]) -> None:
    """Show a white card with a heading."""
    html(f"<h2>{escape(title)}</h2>{fragment(blocks)}", "card")


def note(text: str) -> Markup:
    """Return a paragraph in small grey type."""
    return fragment([Text(text, "note")])
