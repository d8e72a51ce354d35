"""An index of questions, as conversations: was one of them, or nearly one of them, asked before?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.conversation import Message
from schemas.tasks import TaskSpec
from shared.conversation import comparable_text
from shared.model.near_duplicates import NearDuplicates


class AskedQuestions:
    """An index of a task's questions.

    A question is nearly another one if what was asked is, and if whole texts are, with the documents that applications
    put in system messages (`comparable_text`): without these all summaries ask the same, and with them an application's
    long instruction would make all of its questions alike.
    """

    def __init__(self, asked: Iterable[Sequence[Message]], spec: TaskSpec) -> None:
        self._spec = spec
        texts = [(self._asked(messages), self._whole(messages)) for messages in asked]
        similarity = spec.dataset.near_copy_similarity
        self._index = NearDuplicates((asked for asked, _ in texts), similarity)
        self._wholes = None
        if any(asked != whole for asked, whole in texts):
            self._wholes = NearDuplicates((whole for _, whole in texts), similarity)

    def __len__(self) -> int:
        return len(self._index)

    def contains(self, messages: Sequence[Message]) -> bool:
        """Return True if this was asked, or nearly."""
        if not self._index.contains(self._asked(messages)):
            return False
        return self._wholes is None or self._wholes.contains(self._whole(messages))

    def _asked(self, messages: Sequence[Message]) -> str:
        return comparable_text(messages, self._spec.dataset.user_part)

    def _whole(self, messages: Sequence[Message]) -> str:
        return comparable_text(messages, self._spec.dataset.user_part, (self._spec.system_prompt,))
