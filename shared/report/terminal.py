"""Prints blocks in the terminal. No text is read as markup or emoji; no table cuts what it says.

Times are of this machine's zone; a page has them in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text as RichText

from shared.report.blocks import Bars, Block, Cell, Figures, Link, Matrix, Plot, Section, Table, Tag, Text
from shared.report.written import written

_STYLES = {"": "", "good": "green", "bad": "red", "open": "yellow", "go": "cyan", "note": "dim"}
_PIPE_WIDTH = 10_000
"""Of a table where no terminal ends a line: Rich would take a file, a pipe or cron for one of 80 columns."""
_FOLDED_COLUMNS, _EDGES = 5, 3
"""The least width of a column that folds; the width of what is between two columns."""
_MAX_FOLDED_ROWS = 10


def print_blocks(blocks: Iterable[Block], console: Console) -> None:
    """Print texts and tables: of what a page folds, the first rows. Plots are of the page alone.

    A long line is not wrapped, so that it can be copied and searched.
    """
    for block in blocks:
        match block:
            case Text() if block.text:
                said = f"{block.tag}: {block.text}" if block.tag else block.text
                console.print(RichText(said, _STYLES[block.tone]), soft_wrap=True)
            case Link():
                console.print(RichText(f"{block.text}: {block.address}"), soft_wrap=True)
            case Section() if not all(isinstance(within, Bars | Plot | Matrix) for within in block.blocks):
                console.print(RichText(block.title, "bold"), soft_wrap=True)
                print_blocks(map(_first_rows, block.blocks) if block.folded else block.blocks, console)
            case Figures():
                print_table(Table(tuple(block.values), [tuple(block.values.values())]), console)
            case Table():
                print_table(block, console)


def print_table(block: Table, console: Console) -> None:
    """Print a table. Columns that are kept whole fold too where the terminal has no room: Rich would cut them."""
    title = RichText(block.title, "bold") if block.title else None
    table = RichTable(title=title, title_justify="left", show_header=any(block.columns))
    for name in block.columns:
        table.add_column(RichText(name), overflow="fold", no_wrap=name in block.whole)
    for row in block.rows:
        table.add_row(*map(_styled, row))
    if not console.is_terminal:
        console = Console(file=console.file, width=_PIPE_WIDTH)
    whole = [column for column in table.columns if column.no_wrap]
    room = console.width - _FOLDED_COLUMNS * (len(table.columns) - len(whole)) - _EDGES * (len(table.columns) + 1)
    if sum(console.measure(Group(column.header, *column.cells)).maximum for column in whole) > room:
        for column in whole:
            column.no_wrap = False
    console.print(table)


def _styled(cell: Cell) -> RichText:
    if isinstance(cell, datetime):
        return RichText(f"{cell.astimezone():%Y-%m-%d %H:%M:%S}")
    return RichText(written(cell), _STYLES[cell.tone] if isinstance(cell, Tag) else "")


def _first_rows(block: Block) -> Block:
    if not isinstance(block, Table) or len(block.rows) <= _MAX_FOLDED_ROWS:
        return block
    rest = ("…", *[""] * (len(block.columns) - 1))
    return replace(block, rows=[*block.rows[:_MAX_FOLDED_ROWS], rest])
