"""Each printer shows every block that it promises to, and reads no text as markup."""

from __future__ import annotations

import re

from schemas.approaches import Gain
from schemas.base import Interval
from shared.report.blocks import Axis, Bars, Line, Link, Matrix, Plot, Section, Share, Table, Tag, Text, share_axis
from shared.report.html import fragment, page
from shared.report.written import decimals, number, written
from tests.unit.shared.report.reading import printed

POISON = "<img src=x> [red]:smile:{{ 7 * 7 }}"
INTERVAL = Interval(value=0.5, low=0.4, high=0.625, n=40)
PLOT = Plot(
    POISON, Axis("step", 1, 100, [(1, "1"), (100, "100")], log=True), share_axis(POISON),
    [Line(POISON, [(1, 0.25), (10, 0.5), (1000, 2.0)]), Line("held", [(1, 0.0), (100, 1.0)], "steps"),
     Line("marks", [(10, INTERVAL)], "marks")],
    levels=[(0.5, POISON)], moments=[(10, POISON)], diagonal=True,
)  # fmt: skip
BLOCKS = [
    Text(POISON), Text(POISON, "bad", POISON), Link(POISON, '"><b>'), PLOT,
    Table((POISON, ""), [(POISON, Tag(POISON, "good")), (Link(POISON, "/x"), None)], POISON),
    Section(POISON, [Section(POISON, [Text(POISON)], folded=True)]),
    Bars(POISON, (POISON, "other"), {POISON: (INTERVAL, 0.25), "none": (None, Share(0.5))}, bad={POISON}),
    Matrix(POISON, [POISON, "b"], [POISON, "b"], [(POISON, POISON, 3, 0.75), (POISON, "b", 1, 0.25)]),
]  # fmt: skip


def test_values_are_written_by_their_type() -> None:
    gain = Gain(value=0.25, low=-0.01, high=0.5)
    assert [written(cell) for cell in (None, "a", Share(0.1234), INTERVAL, gain, Tag("new"), Link("go", "/x"))] == [
        "–", "a", "12.3%", "50.0% (40.0%–62.5%)", "+25.0 (-1.0 to +50.0)", "new", "go",
    ]  # fmt: skip
    assert [number(value) for value in (None, 3.0, 0.123456, 12_345.6)] == ["–", "3", "0.1235", "12,346"]
    assert (decimals(INTERVAL, 2), decimals(None)) == ("0.50 (0.40–0.62)", "–")


def test_no_text_is_html_or_a_template() -> None:
    shown = page(POISON, BLOCKS)
    assert "<img" not in shown and "&lt;img src=x&gt; [red]:smile:{{ 7 * 7 }}" in shown and '"><b>' not in shown
    assert not re.search(r"https?://|<script|@import", shown) and "default-src 'none'" in shown


def test_the_terminal_prints_texts_and_tables_as_they_are_and_leaves_plots_to_the_page() -> None:
    said = printed(*BLOCKS)
    assert f"{POISON}: {POISON}\n" in said and f'{POISON}: "><b>\n' in said
    assert said.count(POISON) == 12 and "marks" not in said
    assert printed(Section("only a plot", [PLOT], folded=True)) == ""


def test_no_line_of_a_table_ends_where_no_terminal_does() -> None:
    assert f"│ {'x' * 500} │" in printed(Table(("a",), [("x" * 500,)]))


def test_the_terminal_prints_the_first_rows_of_what_a_page_folds() -> None:
    table = Table(("row",), [(f"row {n}",) for n in range(12)])
    assert "row 11" in printed(Section("all", [table]))
    folded = printed(Section("all", [table], folded=True))
    assert "row 9" in folded and "row 10" not in folded and "…" in folded
    assert "<details><summary>all</summary>" in fragment([Section("all", [table], folded=True)])


def test_a_plot_has_its_lines_within_its_axes() -> None:
    drawn = str(fragment([PLOT]))
    assert 'd="M52.0 157.0L338.0 110.0L624.0 16.0"' in drawn  # What is beyond an end is drawn at it.
    assert 'd="M52.0 204.0H624.0V16.0"' in drawn
    assert drawn.count("<circle") == 3 and 'class="ideal"' in drawn


def test_bars_have_intervals_and_values_and_nothing_for_none() -> None:
    drawn = str(fragment([BLOCKS[6]]))
    assert 'x1="300.0" x2="356.2"' in drawn and 'width="62.5"' in drawn and drawn.count("<g ") == 3
    assert 'fill-opacity="0.79"' in str(fragment([BLOCKS[7]]))
