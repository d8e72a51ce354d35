"""Groups of numbers that pairs join."""

from __future__ import annotations


class Groups:
    """Numbers that pairs join into groups. `groups[n]` is the smallest number of n's group."""

    def __init__(self, count: int) -> None:
        self._first = list(range(count))

    def __getitem__(self, number: int) -> int:
        while self._first[number] != number:
            self._first[number] = number = self._first[self._first[number]]
        return number

    def join(self, left: int, right: int) -> None:
        first, second = sorted((self[left], self[right]))
        self._first[second] = first
