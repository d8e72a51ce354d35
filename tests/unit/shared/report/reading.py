"""What blocks say, for tests: their tables, and all their words as the terminal prints them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from rich.console import Console

from shared.report.blocks import Block, Section, Table
from shared.report.terminal import print_blocks
from shared.report.written import written


def tables(blocks: Iterable[Block]) -> Iterator[Table]:
    for block in blocks:
        if isinstance(block, Section):
            yield from tables(block.blocks)
        elif isinstance(block, Table):
            yield block


def rows_of(blocks: Iterable[Block], first_column: str) -> list[tuple[str, ...]]:
    """The rows of the table whose first column has this name; none where there is no such table."""
    found = [table for table in tables(blocks) if table.columns[0] == first_column]
    return [tuple(map(written, row)) for table in found for row in table.rows]


def printed(*blocks: Block) -> str:
    file = io.StringIO()
    print_blocks(blocks, Console(file=file))
    return file.getvalue()
