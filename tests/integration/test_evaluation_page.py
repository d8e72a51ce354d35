"""The page of an evaluation in a real browser: its plots are drawn, its texts are whole, also on a phone.

Chromium opens it as the console serves it, which allows it to run and to load nothing.
"""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from deploy.devstack.config import StackConfig
from schemas.evaluation import EvaluationReport
from services.console.reports import mount_reports
from services.evaluator.report.publish import publish_report
from shared.http import build_http
from shared.storage.artifacts import ArtifactStore
from tests.integration.browser import browser, opened
from tests.unit.evaluator.reports import classification, extraction, generation

PHONE, DESKTOP = 390, 1280
GREEN, RED = (44, 110, 84), (168, 68, 47)
REPORTS = {"desk": classification(), "orders": extraction(), "reply": generation()}

# Returns the texts of plots that reach out of their plot.
CUT = """() => {
  const inside = (inner, outer) => inner.left >= outer.left - 1.5 && inner.right <= outer.right + 1.5
    && inner.top >= outer.top - 1.5 && inner.bottom <= outer.bottom + 1.5;
  return [...document.querySelectorAll("svg text")]
    .filter(text => text.getClientRects().length)
    .filter(text => !inside(text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()))
    .map(text => text.textContent);
}"""
DRAWN = """svg => {
  const frame = svg.getBoundingClientRect();
  const size = shape => { const box = shape.getBoundingClientRect(); return Math.max(box.width, box.height); };
  return {
    width: frame.width, height: frame.height,
    empty: [...svg.querySelectorAll("rect, circle, path, line")].filter(shape => !(size(shape) > 0)).length,
    outside: [...svg.querySelectorAll("circle, path, rect")].filter(shape => {
      const box = shape.getBoundingClientRect();
      return box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2
        || box.bottom > frame.bottom + 2;
    }).length,
  };
}"""


class History:
    """The console's history of three cycles, each with an evaluation in the store."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self._addresses = addresses

    async def events(self, cycle_id: str) -> list[dict[str, Any]]:
        return [{"topic": "adapters.evaluated.v1", "event": {"report": self._addresses[cycle_id]}}]


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser(StackConfig.load()) as started:
        yield started


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("store")
    store = ArtifactStore(str(folder), folder / "cache")
    addresses = {name: publish_report(report, store, folder / "made" / name) for name, report in REPORTS.items()}
    app = build_http("console", list, 1_000)
    mount_reports(app, History(addresses), store)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def drawn(plot: Locator) -> dict[str, float]:
    found: dict[str, float] = plot.evaluate(DRAWN)
    assert found["width"] > 250 and found["height"] > 40, found
    assert (found["empty"], found["outside"]) == (0, 0), found
    return found


def plot_of(page: Page, title: str) -> Locator:
    return page.locator(f"figure:has(figcaption:text('{title}')) svg")


def pixels_near(plot: Locator, colour: tuple[int, int, int]) -> int:
    image = np.asarray(Image.open(io.BytesIO(plot.screenshot())).convert("RGB")).astype(int)
    return int((np.abs(image - np.array(colour)).sum(axis=2) < 40).sum())


def assert_whole(page: Page, report: EvaluationReport, complaints: list[str]) -> None:
    assert complaints == []
    said = page.inner_text("body")
    title, verdict = said.split("\n\n")[:2] if "\n\n" in said else said.split("\n")[:2]
    assert (title.startswith("Evaluation"), verdict.strip()) == (True, report.headline)
    assert not re.search(r"\b(None|nan|NaN|undefined|Undefined)\b", said)
    for gate in report.gates:
        assert gate.required in said and gate.detail in said
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    assert page.evaluate(CUT) == []
    for tag in page.locator("h1, h2, p, summary, figcaption, td[data-name=why]").all():
        if box := tag.bounding_box():
            assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"], tag.inner_text()


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_every_plot_of_77_labels_is_drawn(chrome: Browser, console: str, width: int) -> None:
    report = REPORTS["desk"]
    with opened(chrome, f"{console}/cycles/desk/evaluation", width) as (page, complaints):
        matrix = page.locator("svg.matrix").first
        drawn(matrix)
        assert matrix.locator("rect.cell").count() == len(report.candidate.confusions)
        assert pixels_near(matrix, GREEN) > 150 and pixels_near(matrix, RED) > 50
        rows = [box for text in matrix.locator("text.end").all() if (box := text.bounding_box())]
        assert len(rows) == 77
        apart = [low["y"] - high["y"] for high, low in pairwise(rows)]
        assert min(apart) >= 9 and min(box["height"] for box in rows) >= 9, "names stand apart and can be read"
        reliability = plot_of(page, "Reliability")
        drawn(reliability)
        assert reliability.locator("circle").count() == len(report.reliability.before + report.reliability.after)
        parts = page.locator("svg.bars")
        assert page.locator("figure:has(svg.bars) figcaption").all_inner_texts() == [
            "Classes", "Failure modes", "Applications", "Lengths",
        ]  # fmt: skip
        for plot in parts.all():
            drawn(plot)
            assert plot.locator("g.s0 circle").count() == plot.locator("g.s1 circle").count() > 0
        page.locator("details:has-text('parts as a table')").locator("summary").click()
        assert page.locator("details[open] tr").count() == 1 + len(report.parts)
        assert_whole(page, report, complaints)


@pytest.mark.parametrize("name", ["orders", "reply"])
def test_kinds_without_labels_have_a_whole_page_on_a_phone(chrome: Browser, console: str, name: str) -> None:
    with opened(chrome, f"{console}/cycles/{name}/evaluation", PHONE) as (page, complaints):
        assert page.locator("svg.matrix").count() == 0
        for plot in page.locator("svg").all():
            drawn(plot)
        assert ("Fields" in page.locator("figcaption").all_inner_texts()) == (name == "orders")
        assert_whole(page, REPORTS[name], complaints)


def test_the_published_file_opens_by_itself(chrome: Browser, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    folder = Path(publish_report(REPORTS["orders"], store, tmp_path / "made"))
    with opened(chrome, (folder / "evaluation.html").as_uri(), DESKTOP) as (page, complaints):
        drawn(plot_of(page, "Fields"))
        assert_whole(page, REPORTS["orders"], complaints)
