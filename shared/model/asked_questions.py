"""An index of questions, as conversations: was one of them, or nearly one of them, asked before?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.conversation import Message
from schemas.tasks import TaskSpec
from shared.model.near_duplicates import NearSketches
from shared.model.question_sketches import QuestionSketcher, question_of


class AskedQuestions:
    """An index of a task's questions. When two are nearly the same is said in `question_sketches`."""

    def __init__(self, asked: Iterable[Sequence[Message]], spec: TaskSpec) -> None:
        self._prompts = frozenset({spec.system_prompt})
        questions = [question_of(messages, self._prompts) for messages in asked]
        self._sketcher = QuestionSketcher(questions, spec.dataset.user_part)
        self._index = NearSketches(self._sketcher.sketch_all(questions), spec.dataset.near_copy_similarity)

    def __len__(self) -> int:
        return len(self._index)

    def contains(self, messages: Sequence[Message]) -> bool:
        """Return True if this was asked, or nearly."""
        return self._index.contains(self._sketcher.sketch(question_of(messages, self._prompts)))
