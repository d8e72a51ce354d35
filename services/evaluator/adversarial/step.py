"""The part of the evaluation job that asks both arms the adversarial set."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from schemas.tasks import TaskSpec
from services.evaluator.adversarial.cases import adversarial_cases
from services.evaluator.adversarial.misled import AdversarialAnswers
from services.evaluator.domain import Question
from services.evaluator.recipe import ArmAnswers
from shared.model.inference import InferenceClient

AskArm = Callable[[str, str, Sequence[Question]], Awaitable[ArmAnswers]]
"""Asks a model questions: takes the name to store the answers by, the model and the questions."""
RepeatFailed = Callable[[str, ArmAnswers, Sequence[Question]], Awaitable[ArmAnswers]]
"""Repeats the requests to a model that failed: takes the model, its answers and the questions."""


async def ask_adversarial(
    engine: InferenceClient,
    candidate: str,
    production: str,
    evaluation: Sequence[Question],
    spec: TaskSpec,
    ask_arm: AskArm,
    repeat_failed: RepeatFailed,
) -> AdversarialAnswers | None:
    """Return both models' answers to the set made from `evaluation`; None if the task wants none or no row serves.

    What failed is repeated when both were asked, as of the evaluation's rows: at once, a repeat finds an engine that
    restarts as it was, and the failures would be those of one arm.

    Raises DependencyUnavailable if most requests fail, StepImpossible if the engine refuses most. Single ones may: what
    an engine refuses, for its length for example, is a wrong answer of that arm.
    """
    if not spec.evaluation.adversarial.rows:
        return None
    cases = adversarial_cases(evaluation, spec, await engine.context_tokens())
    if not cases:
        return None
    questions = [case.question for case in cases]
    ours = await ask_arm("adversarial_candidate", candidate, questions)
    theirs = await ask_arm("adversarial_production", production, questions)
    ours = await repeat_failed(candidate, ours, questions)
    return AdversarialAnswers(cases, ours, await repeat_failed(production, theirs, questions))
