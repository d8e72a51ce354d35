"""Which question each open review page shows: two people who answer one at once do the work of one. Pure.

In memory, since pages end with their process.
"""

from __future__ import annotations

from datetime import datetime, timedelta

SHOWN_FOR = timedelta(minutes=10)
"""After so long on one page, with nothing done, a question is for everybody: its reviewer may be away."""


class OpenPages:
    """The questions on open pages. A page is any object that stands for it."""

    def __init__(self) -> None:
        self._shown: dict[object, tuple[str, datetime]] = {}

    def show(self, page: object, request_id: str, now: datetime) -> None:
        """Note what a page shows, in the place of what it showed before."""
        self._shown[page] = (request_id, now)

    def leave(self, page: object) -> None:
        """Note that a page shows no open question, or is closed."""
        self._shown.pop(page, None)

    def elsewhere(self, page: object, now: datetime) -> set[str]:
        """Return the questions that other pages show."""
        self._shown = {page: shown for page, shown in self._shown.items() if now - shown[1] < SHOWN_FOR}
        return {request_id for other, (request_id, _) in self._shown.items() if other is not page}
