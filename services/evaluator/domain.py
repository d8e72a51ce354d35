"""The questions of an evaluation, and graded answers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pydantic import JsonValue

from schemas.adapters import AdapterTrained, EvaluationRequested
from schemas.conversation import INSTRUCTIONS, JsonObject, Message, Messages, Role
from schemas.datasets import Example
from schemas.evaluation_settings import TextMetric
from schemas.golden import GoldenRow
from schemas.labels import Purpose
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskSpec
from shared.answers import answer_form
from shared.grading.grade import Grade
from shared.grading.overlap import WORD_METRICS
from shared.identity import content_hash

Candidate = AdapterTrained | EvaluationRequested
"""What an evaluation is about: an adapter that was just trained, or one whose turn has come."""
_PROBE_TEXTS = (
    "I have a question about {}.",
    "Please help me with {}.",
    "{}",
    "Why is that: {}?",
    "What can you tell me about {}?",
)
REFUSED_WAY_OUT = (
    "Its log says why. If held-out, golden or adversarial rows are longer than its context, raise its "
    "--max-model-len, or leave them out."
)
"""Of requests that an engine refuses: it would refuse them again."""
_UNIFORM = (Purpose.AUDIT, Purpose.UNCALIBRATED)


@dataclass(frozen=True)
class Question:
    """A prompt and its right answer as one text, tool calls included.

    `tools`, `tool_choice`, `response_format`: what the application itself asked for with it. `must_pass`: no candidate
    may get it wrong. `row_id`: the golden row's, or the example's. `group`: near-copies have the same. `slices`: parts
    of the evaluation set that are looked at by themselves, such as a failure mode. `drawn`: how probable it was that a
    person is asked about it; None: it was not chance. `is_uniform`: it comes from a sample of answers that nobody
    suspected, too.
    """

    messages: Messages
    answer: str
    tools: tuple[JsonObject, ...] = ()
    tool_choice: JsonValue = None
    response_format: JsonObject | None = None
    must_pass: bool = False
    row_id: str = ""
    group: str = ""
    slices: tuple[str, ...] = ()
    drawn: float | None = None
    is_uniform: bool = False

    @property
    def text(self) -> str:
        return self.messages[-1].text


@dataclass(frozen=True)
class GradedAnswers:
    """One arm's answers to a set of questions, in their order, and each answer's grade. None: the request failed."""

    answers: tuple[str | None, ...]
    grades: tuple[Grade, ...]

    @property
    def right(self) -> tuple[bool, ...]:
        return tuple(grade.right for grade in self.grades)

    @property
    def scores(self) -> tuple[float, ...]:
        """How good each answer is, in [0, 1]; of labels 1 or 0, of text and JSON between where part of it is right."""
        return tuple(grade.score for grade in self.grades)

    @property
    def failed(self) -> int:
        return sum(answer is None for answer in self.answers)

    def with_scores(self, scores: Sequence[float]) -> GradedAnswers:
        """Return the same with these scores of the answers that are not right as a whole."""
        pairs = zip(self.grades, scores, strict=True)
        return replace(self, grades=tuple(g if g.right else replace(g, score=float(score)) for g, score in pairs))


def is_model(event: Candidate) -> bool:
    """Return True for a model of its own, which no adapter's checks and probes are for."""
    return isinstance(event, AdapterTrained) and event.kind == "model"


def job_name(event: Candidate, production: str | None) -> str:
    """Return the job's name, one for each candidate and cycle, and for each request to evaluate again.

    The opponent of a first evaluation is not in it: the adapter that is delivered again after a promotion would get a
    second verdict, and with it a second comparison.
    """
    cycle = event.cycle_id or ""
    if isinstance(event, EvaluationRequested):
        return f"{event.adapter}-vs-{production or 'base'}-{content_hash(cycle, str(event.event_id), length=6)}"
    return f"{event.adapter}-{content_hash(cycle, length=6)}"


def production_of(event: AdapterTrained, rollout: RolloutChanged | None) -> str | None:
    """Return the adapter that serves everyone now. None: the base model, also if the task uses another base by now."""
    if rollout is None or rollout.spec.base_model != event.base_model:
        return None
    return rollout.primary_adapter


def evaluation_questions(rows: Sequence[Example]) -> list[Question]:
    """Return the held-out rows as questions, with what is known of where they come from."""
    is_mixed = len({row.seen for row in rows}) > 1
    return [
        Question(
            row.prompt,
            row.answer,
            row.tools,
            row.tool_choice,
            row.response_format,
            row_id=row.example_id,
            group=row.group,
            slices=tuple(_slices(row, is_mixed=is_mixed)),
            drawn=row.drawn_probability,
            is_uniform=row.purpose in _UNIFORM,
        )
        for row in rows
    ]


def _slices(row: Example, *, is_mixed: bool) -> Iterator[str]:
    if row.mode_id is not None:
        yield f"failure mode {row.mode_id}"
    if row.app is not None:
        yield f"app {row.app}"
    if is_mixed:  # Else it would be all rows once more.
        yield "seen questions" if row.seen else "unseen questions"


def golden_questions(rows: Sequence[GoldenRow], spec: TaskSpec) -> list[Question]:
    """Return golden rows as the gateway would ask them: with the task's prompt, where they have none of their own."""
    system = Message(role=Role.SYSTEM, content=spec.system_prompt)
    questions = []
    for row in rows:
        has_prompt = not spec.system_prompt or any(message.role in INSTRUCTIONS for message in row.prompt)
        messages = row.prompt if has_prompt else (system, *row.prompt)
        asked = Question(messages, row.answer, row.tools, row.tool_choice, row.response_format)
        questions.append(replace(asked, must_pass=row.must_pass, row_id=row.row_id))
    return questions


def sample_rows(questions: Sequence[Question], rows: int) -> list[int]:
    """Return the positions of at most `rows` questions, ascending: the same ones whenever the same are asked."""
    by_rank = sorted(range(len(questions)), key=lambda position: stable_rank(questions[position].messages))
    return sorted(by_rank[:rows])


def stable_rank(messages: Messages) -> str:
    """Return a key to sort by that depends on nothing but what a conversation says."""
    return content_hash(*(f"{message.role}:{message.text}" for message in messages), length=24)


def probe_prompts(spec: TaskSpec) -> list[Messages]:
    """Return five prompts of the task's own words and of nobody's text, as the gateway would send them.

    They begin as the task's traffic does, so that a stale prefix cache shows in them.
    """
    system = (Message(role=Role.SYSTEM, content=spec.system_prompt),) if spec.system_prompt else ()
    subjects = spec.labels or ("this",)
    texts = [text.format(subjects[i % len(subjects)]) for i, text in enumerate(_PROBE_TEXTS)]
    return [(*system, Message(role=Role.USER, content=text)) for text in texts]


@dataclass(frozen=True)
class PastResult:
    """What an adapter that was promoted got right of the golden rows of its time: by `golden_key`."""

    adapter: str
    right: Mapping[str, bool]


def golden_key(question: Question, spec: TaskSpec) -> str:
    """Return the name of a golden row and its answer: a row whose answer was corrected is another.

    So is a text whose answers count as right from another score on.
    """
    if not answer_form(spec).is_free_text(question.answer):
        return content_hash(question.row_id, question.answer)
    return content_hash(question.row_id, question.answer, golden_metric(spec), f"{spec.evaluation.golden_score}")


def is_judged(question: Question, spec: TaskSpec) -> bool:
    """Return True if an answer to a golden question is right or wrong: a text, by a score or words that the task sets.

    No metric says by itself from which value on a text is right, and a judge compares two texts.
    """
    rules = spec.evaluation
    by_score = rules.golden_score is not None or rules.text_metric is TextMetric.EXACT_MATCH
    return by_score or not answer_form(spec).is_free_text(question.answer)


def golden_metric(spec: TaskSpec) -> TextMetric:
    """Return the metric that golden texts are scored by (`shared.answers.text`)."""
    metric = spec.evaluation.text_metric
    return metric if metric in WORD_METRICS else TextMetric.ROUGE_L


def golden_grades(golden: Sequence[Question], answers: GradedAnswers, spec: TaskSpec) -> GradedAnswers:
    """Return graded answers to golden questions with the texts right that reach the task's score."""
    if (bar := spec.evaluation.golden_score) is None:
        return answers
    form = answer_form(spec)
    grades = tuple(
        replace(grade, right=grade.right or (grade.score >= bar and form.is_free_text(question.answer)))
        for question, grade in zip(golden, answers.grades, strict=True)
    )
    return replace(answers, grades=grades)


class Repeated(NamedTuple):
    """The positions of must-pass rows that the candidate got wrong at first, and when they were asked once more.

    `wrong`: wrong twice, or never answered; they count. `unanswered`: wrong once, and the other time without an answer,
    which confirms nothing.
    """

    wrong: Sequence[int] = ()
    unanswered: Sequence[int] = ()


ALL_RIGHT = Repeated()


def failed_must_pass(golden: Sequence[Question], candidate: GradedAnswers) -> list[int]:
    """Return the positions of the must-pass rows that the candidate gets wrong, or did not answer."""
    rights = zip(golden, candidate.right, strict=True)
    return [i for i, (question, is_right) in enumerate(rights) if question.must_pass and not is_right]
