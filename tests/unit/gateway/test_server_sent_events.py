"""A stream of server-sent events is split as the standard says, wherever its pieces are cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.formats.chunks import ServerSentEventParser

FRAGMENTS = (
    b"data: ",
    b"data:",
    b"data: x\n\n",
    b'{"a":1}',
    b"x",
    b" ",
    b"\n",
    b"\n\n",
    b"\r\n",
    b": comment",
    b"id: 1",
)


def split(pieces: Sequence[bytes]) -> list[bytes]:
    parser = ServerSentEventParser()
    return [data for piece in pieces for data in parser.feed(piece)]


def by_the_standard(stream: bytes) -> list[bytes]:
    """The data of each event that has some; what follows the last blank line is no event yet."""
    found, lines = [], []
    for line in stream.replace(b"\r\n", b"\n").split(b"\n")[:-1]:
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif not line:
            found.append(b"\n".join(lines))
            lines = []
    return [data for data in found if data]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=24).map(b"".join), st.data())
def test_events_are_those_of_the_standard_however_the_stream_is_cut(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert split(pieces) == split([stream]) == by_the_standard(stream)


@pytest.mark.parametrize("stream", [b"data: \n\n", b"data: x\n\ndata: \n\n", b"data: \n\ndata: x\n\n", b"\n\n"])
def test_an_event_without_data_is_none(stream: bytes) -> None:
    assert split([stream]) == by_the_standard(stream)


def test_line_ends_of_two_kinds_are_no_data() -> None:
    assert split([b"data: x\r\n\n"]) == split([b"data: x\r\n", b"\n"]) == [b"x"]


def test_an_event_of_several_lines_is_joined() -> None:
    assert split([b"data: a\ndata: b\n\ndata: c\n\n"]) == [b"a\nb", b"c"]
