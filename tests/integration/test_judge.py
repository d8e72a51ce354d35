"""The small model as a judge, on vLLM: people agree with it too seldom, so it is shown and stops nothing."""

from __future__ import annotations

import httpx
import pytest

from schemas.conversation import Answer, Message, Role
from schemas.datasets import PreferredAnswer
from schemas.evaluation_settings import JudgeSettings
from services.evaluator.domain import Question
from services.evaluator.gates import judged
from services.evaluator.judge import certification, step
from services.evaluator.judge.client import JudgeClient
from services.evaluator.judge.step import judge_arms
from services.evaluator.recipe import ArmAnswers
from services.evaluator.verdict import Asked
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.stack

GOOD_AND_BAD = (
    ("What is the capital of France?", "It is Paris.", "It is Berlin."),
    ("How many days has a week?", "A week has seven days.", "A week has twelve days."),
    ("My parcel is late. What can I do?", "Please send us its number, and we ask the courier.", "Bananas are yellow."),
    ("How do I reset my password?", "Use the link 'Forgot password' on the login page.", "No."),
    ("Translate 'good morning' into Spanish.", "Buenos días.", "Buenas noches, adiós."),
    ("What is 7 plus 5?", "12", "75"),
    (
        "Can I return shoes after two weeks?",
        "Yes, within 30 days with the receipt.",
        "Shoes are worn on feet.",
    ),
    ("Who wrote Hamlet?", "William Shakespeare wrote it.", "It was written by a village."),
    ("Is water wet?", "Most people would say so: it makes things wet.", "asdf qwer zxcv"),
    ("When do you open?", "We open at nine in the morning.", "Go away."),
    ("Name a fruit.", "An apple.", "A hammer."),
    ("How do I cancel my order?", "Open it under 'My orders' and press 'Cancel'.", "Orders orders orders orders."),
    ("What colour is the sky on a clear day?", "Blue.", "It has no windows."),
    ("Do you ship to Norway?", "Yes, in three to five days.", "Norway is a word with six letters."),
    ("What boils at 100 degrees Celsius?", "Water, at sea level.", "Stones and the moon."),
    ("I was charged twice.", "Sorry about that: we refund one charge today.", "Good for you!"),
)
"""Questions, the answer that each of us prefers, and one that nobody does."""


@pytest.fixture
def base(vllm: str) -> str:
    models = httpx.get(f"{vllm}/v1/models", timeout=PATIENCE_SECONDS).json()["data"]
    return str(next(model["id"] for model in models if model["parent"] is None))


async def test_the_small_model_is_not_certified_as_a_judge_and_stops_nothing(
    vllm: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certification, "MIN_PAIRS", 16)
    monkeypatch.setattr(step, "MAX_PAIRS", 16)
    settings = JudgeSettings(url=f"{vllm}/v1", model=base)
    client = JudgeClient(settings)
    try:
        found = await judge_arms(client, settings, preferences(), worse_candidate(), lambda said: None)
    finally:
        await client.close()
    of = found.certification
    assert (of.pairs, found.failed, found.problem) == (16, 0, "")
    assert of.agreement is not None and of.lower < of.required
    assert not found.certified
    assert judged(found).passed and "not certified" in judged(found).detail
    assert found.wins + found.losses + found.ties == 4


def preferences() -> list[PreferredAnswer]:
    """Each good answer is shown first as often as second."""
    pairs = []
    for number, (question, good, bad) in enumerate(GOOD_AND_BAD):
        first, second = (good, bad) if number % 2 else (bad, good)
        pairs.append(
            PreferredAnswer(
                prompt=(Message(role=Role.USER, content=question),),
                answers=(Answer(text=first), Answer(text=second)),
                preferred="a" if number % 2 else "b",
                prediction_ids=(f"p{number}",),
                correction_ids=(f"c{number}",),
            )
        )
    return pairs


def worse_candidate() -> Asked:
    rows = GOOD_AND_BAD[:4]
    questions = [Question((Message(role=Role.USER, content=question),), good) for question, good, _ in rows]
    candidate = ArmAnswers(answers=tuple(bad for *_, bad in rows), latencies_ms=())
    production = ArmAnswers(answers=tuple(good for _, good, _ in rows), latencies_ms=())
    return Asked(questions, (), candidate, production)
