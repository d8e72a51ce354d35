"""Names failure modes by the words that distinguish them. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

MAX_WORDS = 4
_WORD = re.compile(r"[^\W\d_](?:'?[^\W\d_])+")
STOP_WORDS = frozenset(
    """a about after again all also am an and any are aren't as at be because been before being both but by can can't
    cannot could couldn't did didn't do does doesn't doing don't down during each else ever few for from further get
    got had hadn't has hasn't have haven't having he hello help her here hers hi him his how i i'd i'll i'm i've if in
    into is isn't it it's its itself just know let like me more most much my myself need no nor not now of off on once
    one only or other our ours out over own please same she should so some still such tell than thank thanks that
    that's the their them then there these they they're this those through to too under until up us very want was
    wasn't we we're were weren't what what's when where which while who whom why will with won't would you you're your
    yours""".split()  # noqa: SIM905 - words read better as words
)


def name_words(clusters: Sequence[Sequence[str]], count: int = MAX_WORDS) -> list[tuple[str, ...]]:
    """Return the words that distinguish each cluster, best first, by c-TF-IDF (Grootendorst 2022, BERTopic).

    A word's weight in a cluster is its share there times log(1 + average words per cluster / its count in all).
    """
    counts = [Counter(w for text in texts for w in _words(text)) for texts in clusters]
    total: Counter[str] = Counter()
    for counter in counts:
        total.update(counter)
    average = sum(total.values()) / max(len(counts), 1)
    named = []
    for counter in counts:
        size = max(sum(counter.values()), 1)
        weights = {w: n / size * math.log1p(average / total[w]) for w, n in counter.items()}
        best = sorted(weights, key=lambda w: (-weights[w], w))
        named.append(tuple(best[:count]))
    return named


def _words(text: str) -> list[str]:
    return [w for w in _WORD.findall(text.casefold().replace("’", "'")) if w not in STOP_WORDS]
