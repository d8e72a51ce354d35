"""What of an earlier revision's corrections still holds: a new label or a comma in the prompt orphans nothing. Pure.

A correction says what the right answer is, whatever model, prompt and list of labels the question was asked with. So it
goes on if the task is still of the same kind and its labels are still there, or were renamed (`renamed_labels`); an
object or a call, if it fits the schema of today (`chat_format.py`). Its row is trained with the system prompt and the
functions of today, which are what the model will be asked with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from schemas.conversation import INSTRUCTIONS, Api, Call, Message, Role
from schemas.datasets import Fate, LeftOutExample, Origin
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.votes import Vote
from shared.answers import AnswerForm, InvalidAnswer, answer_form
from shared.conversation import has_own_form
from shared.conversation.task_tools import chat_fields
from shared.grading.json_values import NOT_JSON, json_or_nothing
from shared.grading.tool_calls import split_calls

_SHOWN_CHARS = 500
_WITH_SYSTEM_PROMPT = (Api.CHAT, Api.RESPONSES)
"""The APIs whose requests the gateway gives the task's system prompt, if they bring none."""


@dataclass(frozen=True)
class Revision:
    """What a build must know of an earlier revision of its task. `answer_form`: of its spec; empty: not known."""

    kind: TaskKind
    system_prompt: str
    answer_form: str = ""


def prompts_of(spec: TaskSpec, revisions: Mapping[str, Revision]) -> frozenset[str]:
    """Return the system prompts that the task has or had. Any other one is part of what was asked."""
    return frozenset({spec.system_prompt, *(revision.system_prompt for revision in revisions.values())})


def carry_over(
    votes: Iterable[Vote], spec: TaskSpec, revisions: Mapping[str, Revision]
) -> tuple[list[Vote], list[LeftOutExample]]:
    """Return the votes that hold under the task's current revision, with today's names of labels, and the others.

    `revisions`: the earlier ones by id. One that is not in it was of a classification task if its answers were
    constrained to labels, else of the same kind as today.
    """
    holding, left_out = [], []
    current, form, answers = spec.revision, spec.answer_form, answer_form(spec)
    kinds = {name: revision.kind for name, revision in revisions.items()} | {current: spec.kind}
    for vote in votes:
        constrained = TaskKind.CLASSIFICATION if vote.call.constrained else spec.kind
        kind = kinds.get(vote.task_revision, constrained)
        label = answers.renamed(answers.from_user(vote.label) if vote.origin is Origin.USER else vote.label)
        revision = vote.task_revision
        if kind is not spec.kind:
            left_out.append(vote.left_out(Fate.SUPERSEDED, "other_kind", f"revision {revision} was a {kind} task"))
        elif revision != current and not answers.named_labels(label).issubset(spec.labels):
            left_out.append(vote.left_out(Fate.SUPERSEDED, "label_removed", f"{label[:100]!r} of revision {revision}"))
        else:
            label, fault = _in_one_spelling(label, answers)
            if fault and _is_of_other_form(vote, form, revisions):
                detail = f"of revision {revision}: {fault}"[:_SHOWN_CHARS]
                left_out.append(vote.left_out(Fate.SUPERSEDED, "schema_changed", detail))
            else:  # It is rejected where it is no answer.
                holding.append(vote if label == vote.label else replace(vote, label=label))
    return holding, left_out


def _is_of_other_form(vote: Vote, form: str, revisions: Mapping[str, Revision]) -> bool:
    """Return True if a vote is of a revision that allowed other answers, and is what may have been one: not cut JSON.

    What no revision allowed is no answer, however often the prompt has changed since.
    """
    former = revisions.get(vote.task_revision)
    if former is None or former.answer_form in ("", form):
        return False
    return bool(split_calls(vote.label)[1]) or json_or_nothing(vote.label) is not NOT_JSON


def _in_one_spelling(label: str, form: AnswerForm) -> tuple[str, str]:
    """Return an answer as it is trained on, and how one that is as it was breaks what the task allows, "" if it does
    not."""
    try:
        return form.canonical(label), ""
    except InvalidAnswer as error:
        return label, str(error)


class CurrentCalls:
    """Makes of a task's calls what the model will be asked with: the prompt and the functions of today."""

    def __init__(self, spec: TaskSpec, prompts: Iterable[str]) -> None:
        """`prompts`: those that the task has or had."""
        self._former = frozenset(prompts) - {spec.system_prompt}
        self._prompt = (Message(role=Role.SYSTEM, content=spec.system_prompt),) if spec.system_prompt else ()
        offered = chat_fields(spec)
        self._tools, self._choice = tuple(offered.get("tools", ())), offered.get("tool_choice")
        self._has_form = has_own_form(spec)

    def __call__(self, call: Call) -> Call:
        """Return the call with the task's current system prompt in the place of a former one, and its functions; the
        form of its answer is the task's, where it has one.

        A system prompt that the application sent itself stays: it will send it again.
        """
        messages = self._messages(call) if self._former else call.messages
        if messages is not call.messages:
            call = call.model_copy(update={"messages": messages})
        if self._has_form and call.response_format is not None:
            call = call.model_copy(update={"response_format": None})
        if not self._tools or (call.tools == self._tools and call.tool_choice == self._choice):
            return call
        return call.model_copy(update={"tools": self._tools, "tool_choice": self._choice})

    def _messages(self, call: Call) -> tuple[Message, ...]:
        given = [message for message in call.messages if message.role in INSTRUCTIONS]
        if not given:
            added = "" in self._former and call.api in _WITH_SYSTEM_PROMPT
            return (*self._prompt, *call.messages) if added else call.messages
        first = call.messages[0]
        if len(given) > 1 or first is not given[0] or first.text not in self._former:
            return call.messages
        return (*self._prompt, *call.messages[1:])
