"""What of an earlier revision's corrections still holds: a new label or a comma in the prompt orphans nothing. Pure.

A correction says what the right answer is, whatever model, prompt and list of labels the question was asked with. So it
goes on if the task is still of the same kind and its labels are still there, or were renamed (`renamed_labels`); an
object or a call, if it fits the schema of today (`chat_format.py`). Its row is trained with the system prompt and the
functions of today, which are what the model will be asked with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from schemas.conversation import INSTRUCTIONS, Api, Call, Message, Role
from schemas.datasets import Fate, LeftOutExample, Origin
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.votes import Vote
from shared.conversation.task_tools import chat_fields
from shared.grading.json_schema import canonical, read_answer
from shared.grading.labels import canonical_labels, label_set, set_of_one
from shared.grading.tool_calls import canonical_calls

_WITH_SYSTEM_PROMPT = (Api.CHAT, Api.RESPONSES)
"""The APIs whose requests the gateway gives the task's system prompt, if they bring none."""


@dataclass(frozen=True)
class Revision:
    """What a build must know of an earlier revision of its task."""

    kind: TaskKind
    system_prompt: str


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
    current = spec.revision
    kinds = {name: revision.kind for name, revision in revisions.items()} | {current: spec.kind}
    for vote in votes:
        kind = kinds.get(vote.task_revision) or _kind_of_answer(vote, spec)
        is_users_set = kind is TaskKind.MULTI_LABEL and vote.origin is Origin.USER
        label = _renamed(set_of_one(vote.label, spec) if is_users_set else vote.label, kind, spec)
        revision = vote.task_revision
        if kind is not spec.kind:
            left_out.append(vote.left_out(Fate.SUPERSEDED, "other_kind", f"revision {revision} was a {kind} task"))
        elif kind.has_labels and revision != current and not _labels_in(label, kind).issubset(spec.labels):
            left_out.append(vote.left_out(Fate.SUPERSEDED, "label_removed", f"{label[:100]!r} of revision {revision}"))
        else:
            if kind in (TaskKind.EXTRACTION, TaskKind.TOOLS, TaskKind.MULTI_LABEL):
                label = _in_one_spelling(label, spec)
            holding.append(vote if label == vote.label else replace(vote, label=label))
    return holding, left_out


def _renamed(answer: str, kind: TaskKind, spec: TaskSpec) -> str:
    """Return an answer with today's names of its labels."""
    if kind is TaskKind.CLASSIFICATION:
        return spec.renamed_labels.get(answer, answer)
    found = _labels_in(answer, kind)
    if found.isdisjoint(spec.renamed_labels):
        return answer
    return json.dumps(sorted(spec.renamed_labels.get(label, label) for label in found), ensure_ascii=False)


def _labels_in(answer: str, kind: TaskKind) -> frozenset[str]:
    if kind is TaskKind.CLASSIFICATION:
        return frozenset({answer})
    return (label_set(answer) if kind is TaskKind.MULTI_LABEL else None) or frozenset()


def _in_one_spelling(label: str, spec: TaskSpec) -> str:
    """Return JSON by the task's schema, several labels, or calls, as they are trained on; what is none as it is, to be
    rejected.

    Equal answers are then equal texts, however people and models laid them out.
    """
    schema = spec.output_schema or {}
    try:
        if spec.tools:
            return canonical_calls(label, spec)
        if spec.kind is TaskKind.MULTI_LABEL:
            return canonical_labels(label, spec)
        return canonical(read_answer(label, schema), schema)
    except ValueError:
        return label


def with_current_prompt(call: Call, spec: TaskSpec, former_prompts: Iterable[str]) -> Call:
    """Return the call with the task's current system prompt in the place of a former one.

    A system prompt that the application sent itself stays: it will send it again.
    """
    former = set(former_prompts) - {spec.system_prompt}
    given = [message for message in call.messages if message.role in INSTRUCTIONS]
    current = (Message(role=Role.SYSTEM, content=spec.system_prompt),) if spec.system_prompt else ()
    if not given:
        added = "" in former and call.api in _WITH_SYSTEM_PROMPT
        return call.model_copy(update={"messages": (*current, *call.messages)}) if added else call
    first = call.messages[0]
    if len(given) > 1 or first is not given[0] or not isinstance(first.content, str) or first.content not in former:
        return call
    return call.model_copy(update={"messages": (*current, *call.messages[1:])})


def with_current_tools(call: Call, spec: TaskSpec) -> Call:
    """Return the call with the functions that a tools task has today, which the model will be asked with."""
    if not spec.tools:
        return call
    offered = chat_fields(spec)
    tools, choice = tuple(offered["tools"]), offered["tool_choice"]
    same = call.tools == tools and call.tool_choice == choice
    return call if same else call.model_copy(update={"tools": tools, "tool_choice": choice})


def _kind_of_answer(vote: Vote, spec: TaskSpec) -> TaskKind:
    return TaskKind.CLASSIFICATION if vote.call.constrained else spec.kind
