"""Asks an arm the questions, as the gateway would."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from pydantic import BaseModel

from schemas.tasks import TaskSpec
from services.evaluator.domain import REFUSED_WAY_OUT, GradedAnswers, Question
from shared.answers import answer_form
from shared.conversation import chat_messages
from shared.conversation.response_format import response_format
from shared.conversation.task_tools import chat_fields
from shared.errors import DependencyUnavailable, InvalidMessage, StepImpossible
from shared.model.confidence import measure
from shared.model.inference import Completion, InferenceClient, NotServed

_MAX_ATTEMPTS = 2
RETRY_ROUNDS = 2
"""How often the requests that failed are repeated, of arms and rivals alike."""


class ArmAnswers(BaseModel):
    """One arm's answers in the order of the questions (None: the request failed), and the others' latencies in ms.

    `refused`: the positions of those that the engine refused, as too long for example. `scores`: each answer's
    uncalibrated confidence in [0, 1]; None: failed, or vLLM returned no log-probabilities. `prompt_tokens` and
    `answer_tokens`: the means over the answers. `tokens_per_second`: answer tokens of all requests together; 0: not
    measured.
    """

    answers: tuple[str | None, ...]
    latencies_ms: tuple[float, ...]
    refused: tuple[int, ...] = ()
    scores: tuple[float | None, ...] = ()
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    tokens_per_second: float = 0.0

    def merged(self, positions: Sequence[int], repeated: ArmAnswers) -> ArmAnswers:
        """Return the answers with those at `positions` replaced, which were asked for again. Tokens stay."""
        answers, scores = list(self.answers), list(self.scores)
        for number, position in enumerate(positions):
            answers[position] = repeated.answers[number]
            if scores:
                scores[position] = repeated.scores[number]
        latencies = (*self.latencies_ms, *repeated.latencies_ms)
        refused = {*self.refused} - {*positions} | {positions[number] for number in repeated.refused}
        found = {
            "answers": tuple(answers), "latencies_ms": latencies, "refused": tuple(sorted(refused)),
            "scores": tuple(scores),
        }  # fmt: skip
        return self.model_copy(update=found)

    @property
    def unanswered(self) -> list[int]:
        """The positions of the questions whose requests failed."""
        return [position for position, answer in enumerate(self.answers) if answer is None]

    def graded(self, questions: Sequence[Question], start: int, spec: TaskSpec) -> GradedAnswers:
        """Grade the answers to `questions`, which were asked from position `start` on."""
        answers, grade = self.answers[start : start + len(questions)], answer_form(spec).grade
        return GradedAnswers(answers, tuple(grade(q.answer, a) for a, q in zip(answers, questions, strict=True)))


async def ask(
    client: InferenceClient,
    model: str,
    questions: Sequence[Question],
    spec: TaskSpec,
    concurrency: int,
    report: Callable[[int], None],
) -> ArmAnswers:
    """Ask `model` all questions, `concurrency` at a time, constrained and measured as the gateway does.

    `report(n)` is called with the number of requests done. A request that fails twice is a failed answer. Raises
    DependencyUnavailable if most of them failed, because then the fault is vLLM's, StepImpossible if it refuses most.
    """
    answers = await ask_again(client, model, questions, spec, concurrency, report)
    failed, refused = len(answers.unanswered), len(answers.refused)
    if 2 * refused > len(questions):
        raise StepImpossible(f"vLLM refuses {refused} of {len(questions)} requests to {model}", REFUSED_WAY_OUT)
    if 2 * failed > len(questions):
        raise DependencyUnavailable(
            f"{failed} of {len(questions)} requests to {model} failed", "Check vLLM and its log: ratchet status"
        )
    return answers


async def ask_again(
    client: InferenceClient,
    model: str,
    questions: Sequence[Question],
    spec: TaskSpec,
    concurrency: int,
    report: Callable[[int], None],
) -> ArmAnswers:
    """Ask questions as `ask` does, where any number may fail: they are few, and the model may refuse all of them."""
    limit = asyncio.Semaphore(concurrency)
    done, started = 0, time.monotonic()
    refused = list[int]()

    scores: list[float | None] = [None] * len(questions)

    async def complete(position: int, question: Question) -> Completion | None:
        nonlocal done
        completion = None
        async with limit:
            try:
                completion = await _complete(client, model, question, spec)
            except InvalidMessage:  # It would be refused again.
                refused.append(position)
        if completion is not None:  # All log-probabilities of a large set's long answers would be gigabytes.
            scores[position] = measure(spec, completion.tokens_logprobs).score
            completion = replace(completion, tokens_logprobs=())
        done += 1
        report(done)
        return completion

    completions = await asyncio.gather(*(complete(*numbered) for numbered in enumerate(questions)))
    answered = [c for c in completions if c is not None]
    return ArmAnswers(
        answers=tuple(None if c is None else c.text for c in completions),
        latencies_ms=tuple(c.latency_ms for c in answered),
        refused=tuple(sorted(refused)),
        scores=tuple(scores),
        prompt_tokens=statistics.fmean(c.prompt_tokens for c in answered) if answered else 0.0,
        answer_tokens=statistics.fmean(c.tokens for c in answered) if answered else 0.0,
        tokens_per_second=sum(c.tokens for c in answered) / max(time.monotonic() - started, 1e-6),
    )


async def ask_failed_again(
    client: InferenceClient,
    model: str,
    answers: ArmAnswers,
    questions: Sequence[Question],
    spec: TaskSpec,
    concurrency: int,
) -> ArmAnswers:
    """Repeat the requests that failed; what fails every time is a failed answer."""
    for _ in range(RETRY_ROUNDS):
        if not (failed := answers.unanswered):
            break
        again = [questions[position] for position in failed]
        repeated = await ask_again(client, model, again, spec, concurrency, lambda done: None)
        answers = answers.merged(failed, repeated)
    return answers


async def ask_persistently(
    client: InferenceClient,
    model: str,
    questions: Sequence[Question],
    spec: TaskSpec,
    concurrency: int,
    report: Callable[[int], None] = lambda done: None,
) -> ArmAnswers:
    """Ask questions as `ask_again` does, and repeat those that fail as often as an arm's."""
    answers = await ask_again(client, model, questions, spec, concurrency, report)
    return await ask_failed_again(client, model, answers, questions, spec, concurrency)


async def _complete(client: InferenceClient, model: str, question: Question, spec: TaskSpec) -> Completion | None:
    """Return the answer; None without one. Raises InvalidMessage if the engine refuses the request for what it is."""
    messages, fields = chat_messages(question.messages), dict(answer_form(spec).confidence_fields)
    # The task's own form comes first: its rows are right by it, whatever an application asks for.
    wanted = response_format(spec) or (None if spec.labels else question.response_format)
    if wanted is not None:
        fields["response_format"] = wanted
    # Constrained to labels, one or a list of them, an answer cannot call one.
    offered = () if spec.labels else question.tools
    if offered and question.tool_choice is not None:
        fields["tool_choice"] = question.tool_choice
    if own := chat_fields(spec):
        fields, offered = {**fields, **own}, ()
    for _ in range(_MAX_ATTEMPTS):
        try:
            return await client.complete(
                model,
                messages,
                tools=offered,
                choices=spec.choices,
                max_tokens=spec.max_answer_tokens,
                fields=fields,
            )
        except (DependencyUnavailable, NotServed):
            continue
    return None
