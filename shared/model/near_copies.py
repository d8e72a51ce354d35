"""Near-copies: questions that differ by a comma, a typo or a word.

MinHash (rensa) proposes pairs, and the Jaccard similarity of their character 4-shingles decides. With 32 bands of four
it misses fewer than one near-copy in a million at a similarity of 0.8, and two in 10,000 at 0.7; with 64 bands of two,
fewer at any lower one from 0.4 on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rensa import RMinHash, RMinHashLSH

from schemas.conversation import Message, Role, input_text
from schemas.tasks import TaskSpec
from shared.model.groups import Groups
from shared.model.texts import Hashes, code_points, fold, rolling_hashes

_PERMUTATIONS = 128
_SEED = 20
MAX_SHINGLES = 1_000
"""Of a longer text those with the smallest hashes stand for all: a sample, so that no text costs more than this."""
_LARGEST = np.uint32(0xFFFFFFFF)
_ERROR = 0.2
"""Of an estimate by MinHash: 4.5 standard errors at its worst."""
_MOST_COMPARED = 1_000
"""Questions that one is compared with to join groups: a larger crowd of near-copies is joined by chains."""


class Question(NamedTuple):
    """What two inputs are compared by: the user's own words, and all that came before and beside them.

    Two questions are near-copies if both parts are. The same words about another document, or after another
    conversation, are another question; under another clock they are the same.
    """

    own: str
    context: str = ""


def question_of(messages: Sequence[Message], prompts: Collection[str], user_part: str | None) -> Question:
    """What of an input is compared, its system messages but for the task's `prompts` included.

    `user_part`: the task's regular expression of the user's own part (its first group, if it has one): the rest does
    not count. Without one, or where it does not match, the own part is the last message of the user.
    """
    if user_part is not None:
        found = re.search(user_part, input_text(tuple(messages), prompts))
        if found is not None:
            return Question(found.group(1 if found.re.groups else 0) or "")
    last = next((message for message in reversed(messages) if message.role == Role.USER and message.text.strip()), None)
    rest = input_text(tuple(message for message in messages if message is not last), prompts)
    own = "" if last is None else last.text
    return Question(own, rest if len(rest) > len(own) else "")  # A line such as "be brief" makes no other question.


class Shingles(NamedTuple):
    """The hashes of runs of four characters of both parts of a question, sorted: uint32 [n]."""

    own: Hashes
    context: Hashes

    @classmethod
    def of(cls, question: Question) -> Shingles:
        return cls(shingles(question.own), shingles(question.context))

    @classmethod
    def from_bytes(cls, data: bytes) -> Shingles:
        numbers = np.frombuffer(data, dtype=np.uint32)
        return cls(numbers[1 : 1 + numbers[0]], numbers[1 + numbers[0] :])

    def to_bytes(self) -> bytes:
        return np.concatenate([np.array([len(self.own)], np.uint32), self.own, self.context]).tobytes()

    def similarity(self, other: Shingles) -> float:
        """The lower similarity of the two parts."""
        return min(jaccard(self.own, other.own), jaccard(self.context, other.context))


def shingles(text: str) -> Hashes:
    """The hashes of a text's runs of four characters, sorted; of a long text the `MAX_SHINGLES` smallest."""
    characters, _ = code_points([fold(text)])
    found: Hashes = np.unique(rolling_hashes(characters))[:MAX_SHINGLES]
    return found


def jaccard(left: Hashes, right: Hashes) -> float:
    """The similarity of two texts by their shingles. Of a sample only what is below its last hash is known."""
    last = min(part[-1] if len(part) == MAX_SHINGLES else _LARGEST for part in (left, right))
    left, right = left[left <= last], right[right <= last]
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


class NearCopies:
    """An index of questions, numbered as they are added. Those that are equal but for case and punctuation are one."""

    def __init__(self, similarity: float) -> None:
        """`similarity`: the Jaccard similarity from which two questions are near-copies, in (0, 1]."""
        self._similarity = similarity
        self._own, self._context = (
            RMinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS, num_bands=32 if similarity >= 0.7 else 64)
            for _ in Shingles._fields
        )
        self._known: list[_Hashed] = []
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, question: Question) -> int:
        """Add a question. Returns its number, that of an equal one if there is one."""
        return self.add_shingles(Shingles.of(question))

    def add_shingles(self, known: Shingles) -> int:
        """Add a question of which only the shingles are left."""
        number = self._numbers.setdefault(known.to_bytes(), len(self._known))
        if number == len(self._known):
            hashed = _Hashed(known)
            self._known.append(hashed)
            self._own.insert(number, hashed.own)
            if hashed.context is not None:
                self._context.insert(number, hashed.context)
        return number

    def near(self, question: Question) -> Iterator[int]:
        """Yield the numbers of a question's near-copies, an equal one among them, in order."""
        return self._near(_Hashed(Shingles.of(question)))

    def near_others(self, number: int) -> Iterator[int]:
        """Yield the numbers of the near-copies of a question of the index, in order, without its own."""
        return (other for other in self._near(self._known[number]) if other != number)

    def contains(self, question: Question) -> bool:
        """True if the index has a near-copy of the question."""
        return next(self.near(question), None) is not None

    def groups(self) -> list[int]:
        """For each number the smallest one that a chain of near-copies joins it with."""
        joined = Groups(len(self))
        for number, known in enumerate(self._known):
            before = [other for other in self._candidates(known) if other < number]
            for other in before[-_MOST_COMPARED:]:
                if joined[other] != joined[number] and self._are_near(known, self._known[other]):
                    joined.join(number, other)
        return [joined[number] for number in range(len(self))]

    def _near(self, asked: _Hashed) -> Iterator[int]:
        return (other for other in self._candidates(asked) if self._are_near(asked, self._known[other]))

    def _are_near(self, left: _Hashed, right: _Hashed) -> bool:
        if left.own.jaccard(right.own) < self._similarity - _ERROR:
            return False
        return left.shingles.similarity(right.shingles) >= self._similarity

    def _candidates(self, asked: _Hashed) -> list[int]:
        found = set(self._own.query(asked.own))
        if len(found) > 1 and asked.context is not None:
            found.intersection_update(self._context.query(asked.context))
        return sorted(found)


class _Hashed:
    """Shingles and their MinHashes; None of a context that is empty, as most are."""

    __slots__ = ("context", "own", "shingles")

    def __init__(self, known: Shingles) -> None:
        self.shingles = known
        self.own = _min_hash(known.own)
        self.context = _min_hash(known.context) if len(known.context) > 1 else None


def group_near_copies(texts: Iterable[str], similarity: float) -> list[int]:
    """For each text the position of the first one that a chain of near-copies joins it with."""
    index, first = NearCopies(similarity), dict[int, int]()
    numbers = [index.add(Question(text)) for text in texts]
    groups = index.groups()
    return [first.setdefault(groups[number], position) for position, number in enumerate(numbers)]


class AskedQuestions:
    """An index of a task's questions: was one of them asked before, or nearly?"""

    def __init__(self, asked: Iterable[Sequence[Message]], spec: TaskSpec) -> None:
        self._prompts, self._user_part = frozenset({spec.system_prompt}), spec.dataset.user_part
        self._index = NearCopies(spec.dataset.near_copy_similarity)
        for messages in asked:
            self.add(messages)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, messages: Sequence[Message]) -> None:
        self._index.add(question_of(messages, self._prompts, self._user_part))

    def contains(self, messages: Sequence[Message]) -> bool:
        """True if this was asked, or nearly."""
        return self._index.contains(question_of(messages, self._prompts, self._user_part))


def _min_hash(known: Hashes) -> RMinHash:
    """MinHash of shingles by their hashes, which stored ones have as well as texts."""
    data = known.tobytes()
    found = RMinHash(_PERMUTATIONS, _SEED)
    found.update([data[at : at + 4] for at in range(0, len(data), 4)])
    return found
