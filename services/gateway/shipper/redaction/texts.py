"""The queue before the one redactor of a process: texts are redacted a piece at a time, and each at most once.

A piece takes about a tenth of a second, and then it is somebody else's turn: a text of megabytes takes many turns, and
no other event waits for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from schemas.task_settings import RedactionSettings
from services.gateway.observability.shipper_status import ShipperStatus
from shared.errors import DependencyUnavailable
from shared.privacy.redaction import (
    MAX_SLICE,
    Redacted,
    RedactedSlice,
    Redactor,
    Rules,
    TextSlice,
    slice_from,
)
from shared.threads import in_thread

DEFAULT_RULES = Rules.of(RedactionSettings())
_MAX_CACHED_LENGTH = 2_000
_SAMPLE = TextSlice("Does it work?", 0, 13)


Query = tuple[int, str, int]
"""The number of the rules; a text; and where what is redacted begins: what stands before it is a cue. A plain tuple is
hashed several times faster than `Rules` are."""
Results = dict[Query, Redacted | Exception]


class TextQueue:
    """Redacts texts. The redactor loads a language model, so it is built in a thread when first needed."""

    def __init__(self, build: Callable[[], Redactor], cache_size: int, status: ShipperStatus) -> None:
        self._build = build
        self._redactor: Redactor | None = None
        self._turn = asyncio.Lock()  # Whoever waits longest is next.
        self._cache: dict[Query, Redacted] = {}
        self._cache_size = cache_size
        self._status = status
        self._rules: list[Rules] = []

    def number_of(self, rules: Rules) -> int:
        """Return the number of the rules, by which a query names them."""
        if rules not in self._rules:
            self._rules.append(rules)
        return self._rules.index(rules)

    async def warm_up(self) -> None:
        """Build the redactor, and load its model."""
        await self._redact_piece([_SAMPLE], DEFAULT_RULES)

    async def redact(self, queries: Iterable[Query]) -> Results:
        """Redact the texts: a text that fails has its error. Raises DependencyUnavailable if the redactor fails."""
        results: Results = {}
        short: dict[int, list[Query]] = {}
        long: list[Query] = []
        for query in queries:
            if query in results:
                continue
            if (cached := self._cache.pop(query, None)) is not None:
                results[query] = self._cache[query] = cached  # At the end: the least recently used is dropped first.
                continue
            results[query] = _NOT_YET
            if len(query[1]) > MAX_SLICE:
                long.append(query)
            else:
                short.setdefault(query[0], []).append(query)
        for number, same in short.items():
            for some in _pieces(same):
                slices = [TextSlice(text, start, len(text)) for _, text, start in some]
                results |= zip(some, await self._redact_piece(slices, self._rules[number]), strict=True)
        for query in long:
            results[query] = await self._redact_long(query)
        self._remember([query for same in short.values() for query in same], results)
        self._status.redacted_texts += len(long)
        return results

    async def _redact_long(self, query: Query) -> Redacted | Exception:
        """Redact a text slice by slice, each in a turn of its own."""
        pieces: list[str] = []
        surrogates: list[str] = []
        kinds: Counter[str] = Counter()
        numbers: dict[str, str] = {}
        number, text, position = query
        while position < len(text):
            (result,) = await self._redact_piece([slice_from(text, position)], self._rules[number])
            if isinstance(result, Exception):
                return result
            pieces.append(result.text)
            surrogates += result.surrogates
            kinds.update(result.kinds)
            numbers.update(result.numbers)
            position = result.end
        return Redacted("".join(pieces), kinds.total(), kinds, surrogates=tuple(surrogates), numbers=numbers)

    async def _redact_piece(self, slices: Sequence[TextSlice], rules: Rules) -> list[RedactedSlice | Exception]:
        async with self._turn:
            # A cancellation waits for the thread: the redactor is for one at a time, and whoever waits has it next.
            if self._redactor is None:
                self._redactor = await in_thread(self._build)
            started = time.perf_counter()
            results = await in_thread(_redact_all, self._redactor, slices, rules)
            self._status.redaction_seconds += time.perf_counter() - started
        return results

    def _remember(self, queries: Sequence[Query], results: Results) -> None:
        self._status.redacted_texts += len(queries)
        for query in queries:
            if len(query[1]) <= _MAX_CACHED_LENGTH and isinstance(result := results[query], Redacted):
                self._cache[query] = result
        while len(self._cache) > self._cache_size:
            del self._cache[next(iter(self._cache))]


_NOT_YET = LookupError("not redacted yet")


def _pieces(queries: Iterable[Query]) -> Iterator[list[Query]]:
    """Divide the texts into pieces of work that are about as long as a slice."""
    piece: list[Query] = []
    length = 0
    for query in queries:
        piece.append(query)
        length += len(query[1])
        if length >= MAX_SLICE:
            yield piece
            piece, length = [], 0
    if piece:
        yield piece


def _redact_all(redactor: Redactor, slices: Sequence[TextSlice], rules: Rules) -> list[RedactedSlice | Exception]:
    """In a thread: return each slice's result or error. Raises DependencyUnavailable if the redactor itself fails."""
    results = _redact_by_halves(redactor, slices, rules)
    if all(isinstance(result, Exception) for result in results):
        try:
            redactor.redact_slices([_SAMPLE], DEFAULT_RULES)
        except Exception as error:
            raise DependencyUnavailable(
                f"the redactor fails: {error!r}", "Events wait in the spool. See the gateway's log."
            ) from error
    return results


def _redact_by_halves(redactor: Redactor, slices: Sequence[TextSlice], rules: Rules) -> list[RedactedSlice | Exception]:
    """Redact the slices; if the redactor fails, split them in halves until only the failing ones have an error."""
    try:
        return list(redactor.redact_slices(slices, rules))
    except Exception as error:  # noqa: BLE001 - an error of one text must not stop the others
        if len(slices) == 1:
            return [error]
        half = len(slices) // 2
        return _redact_by_halves(redactor, slices[:half], rules) + _redact_by_halves(redactor, slices[half:], rules)
