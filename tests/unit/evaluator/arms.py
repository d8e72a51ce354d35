"""Arms with given answers, for tests of gates and statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from schemas.base import Gate
from schemas.conversation import Message, Role
from schemas.tasks import TaskSpec
from services.evaluator.comparison import Comparison
from services.evaluator.domain import GradedAnswers, Question
from shared.answers import answer_form

LABELS = tuple("abcdefghij")
NO_GOLDEN = Comparison((), GradedAnswers((), ()), GradedAnswers((), ()))
FREE = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})

ORDERS = TaskSpec.model_validate(
    {
        "name": "orders",
        "kind": "extraction",
        "system_prompt": "Read.",
        "output_schema": {
            "type": "object",
            "properties": {
                "name": {"type": "string"}, "city": {"type": ["string", "null"]}, "total": {"type": "integer"},
            },
            "required": ["name", "city", "total"],
            "additionalProperties": False,
        },
    }
)  # fmt: skip


def spec(**evaluation: object) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": LABELS, "evaluation": evaluation}
    )


def questions(n: int, labels: Sequence[str] = LABELS) -> list[Question]:
    return [Question((Message(role=Role.USER, content=f"question {i}"),), labels[i % len(labels)]) for i in range(n)]


def graded(asked: Sequence[Question], answers: Sequence[str | None], task: TaskSpec | None = None) -> GradedAnswers:
    task = task or spec()
    return GradedAnswers(
        tuple(answers), tuple(answer_form(task).grade(q.answer, a) for a, q in zip(answers, asked, strict=True))
    )


def arm(asked: Sequence[Question], right: Iterable[int], failed: Iterable[int] = ()) -> GradedAnswers:
    """Answers with the right label at these positions, and with the next label elsewhere."""
    kept, gone = set(right), set(failed)
    following = {label: LABELS[(number + 1) % len(LABELS)] for number, label in enumerate(LABELS)}
    answers = [None if i in gone else q.answer if i in kept else following[q.answer] for i, q in enumerate(asked)]
    return graded(asked, answers)


def compared(n: int, candidate: Iterable[int], production: Iterable[int]) -> Comparison:
    asked = questions(n)
    return Comparison(asked, arm(asked, candidate), arm(asked, production))


def marked(comparison: Comparison, *positions: int) -> Comparison:
    """The same with names of golden rows, and those at `positions` as must-pass rows."""
    named = [
        replace(question, must_pass=number in positions, row_id=f"g-{number}")
        for number, question in enumerate(comparison.questions)
    ]
    return replace(comparison, questions=named)


def gate(gates: Iterable[Gate], name: str) -> Gate:
    (found,) = [g for g in gates if g.name == name]
    return found


def stopped_by(gates: Iterable[Gate]) -> list[str]:
    return [g.name for g in gates if not g.passed]
