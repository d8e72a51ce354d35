"""Which tokens a row becomes, what of them is learned, and which rows are skipped."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.conversation import Message, Role, ToolCall
from schemas.datasets import Example
from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.trainer.domain import SkippedRows
from services.trainer.rows import tokenize, tokenize_rows
from shared.errors import StepImpossible

WITH_TOOLS = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'critic' %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
    "{% endfor %}|{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT_ONLY = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MISTRAL = (  # As of Mistral-7B-Instruct-v0.3, Nemo and Small.
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}"
    "{% set asked = turns | selectattr('role', 'equalto', 'user') | list %}<s>"
    "{% for m in turns %}{% if m.role == 'user' %}"
    "{% if tools and m == asked[-1] %}[AVAILABLE_TOOLS] [{{ tools[0].function.name }}][/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {% if loop.last and system is defined %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{{ m.tool_calls[0].function | tojson }}]</s>"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}</s>"
    "{% else %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]{% endif %}{% endfor %}"
)
SPEC = TaskSpec(
    name="desk",
    kind=TaskKind.GENERATION,
    base_model="tiny",
    system_prompt="",
    training=TrainingSettings(max_length=150),
)  # fmt: skip
TOOLS = ({"type": "function", "function": {"name": "find"}},)
FIND = Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="find", arguments='{"n": 4711}', id="c1"),))
ASKED = (
    Message(role=Role.USER, content="Where?"),
    FIND,
    Message(role=Role.TOOL, content="lost", tool_call_id="c1"),
)


class Characters:
    """A tokenizer with a chat template, whose tokens are characters."""

    def __init__(self, template: str) -> None:
        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment()
        environment.globals["raise_exception"] = refuse
        self._template = environment.from_string(template)

    def apply_chat_template(self, messages: list[dict[str, Any]], *, return_dict: bool, **options: Any) -> Any:
        text = self._template.render(messages=messages, **options)
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


def row(*messages: Message, tools: Any = TOOLS) -> Example:
    return Example(
        example_id="e", messages=messages, tools=tools, group="g", prediction_ids=("p",), correction_ids=("c",)
    )


def learned(example: Example, template: str = WITH_TOOLS) -> tuple[str, str]:
    """Return the text that a row becomes, and the part of it that is learned."""
    tokens = tokenize(example, Characters(template))
    assert tokens is not None
    return "".join(map(chr, tokens.tokens)), "".join(map(chr, tokens.tokens[tokens.start :]))


def test_a_conversation_with_tools_is_rendered_whole_and_only_its_answer_is_learned() -> None:
    whole, answer = learned(row(*ASKED, Message(role=Role.ASSISTANT, content="It is lost.")))
    assert whole == '[find]<user>Where?|<assistant>find{"n": 4711}|<tool>lost|<assistant>It is lost.|'
    assert answer == "It is lost.|"


def test_an_answer_of_tool_calls_is_learned_as_the_template_writes_it() -> None:
    assert learned(row(ASKED[0], FIND))[1] == 'find{"n": 4711}|'


def test_a_row_without_tools_is_rendered_without_them() -> None:
    whole, answer = learned(row(ASKED[0], Message(role=Role.ASSISTANT, content="There."), tools=()), TEXT_ONLY)
    assert (whole, answer) == ("<user>Where?|<assistant>There.|", "There.|")


def test_a_prompt_that_ends_otherwise_without_its_answer_is_trained_on_as_it_is_served() -> None:
    dated = TEXT_ONLY.replace("<assistant>{% endif", "(today)<assistant>{% endif")
    whole, answer = learned(row(ASKED[0], Message(role=Role.ASSISTANT, content="There.")), dated)
    assert (whole, answer) == ("<user>Where?|(today)<assistant>There.|", "There.|")


SYSTEM = Message(role=Role.SYSTEM, content="Label it.")
REFUND = Message(role=Role.ASSISTANT, content="refund")


@pytest.mark.parametrize(
    ("messages", "tools", "prompt", "answer"),
    [
        ((ASKED[0], REFUND), (), "<s>[INST] Where?[/INST]", " refund</s>"),
        ((SYSTEM, ASKED[0], REFUND), (), "<s>[INST] Label it.\n\nWhere?[/INST]", " refund</s>"),
        (  # The user's words begin as the system prompt, and the answer is what the user says.
            (SYSTEM, Message(role=Role.USER, content="Label"), Message(role=Role.ASSISTANT, content="Label")),
            (),
            "<s>[INST] Label it.\n\nLabel[/INST]",
            " Label</s>",
        ),
        (
            (SYSTEM, ASKED[0], REFUND, Message(role=Role.USER, content="And now?"), REFUND),
            (),
            "<s>[INST] Where?[/INST] refund</s>[INST] Label it.\n\nAnd now?[/INST]",
            " refund</s>",
        ),
        (
            (SYSTEM, ASKED[0], FIND),
            TOOLS,
            "<s>[AVAILABLE_TOOLS] [find][/AVAILABLE_TOOLS][INST] Label it.\n\nWhere?[/INST]",
            '[TOOL_CALLS] [{"arguments": {"n": 4711}, "name": "find"}]</s>',
        ),
        (  # The prompt ends in a tool's result: it is served without the system prompt.
            (SYSTEM, *ASKED, REFUND),
            TOOLS,
            "<s>[AVAILABLE_TOOLS] [find][/AVAILABLE_TOOLS][INST] Where?[/INST]"
            '[TOOL_CALLS] [{"arguments": {"n": 4711}, "name": "find"}]</s>[TOOL_RESULTS] lost[/TOOL_RESULTS]',
            " refund</s>",
        ),
    ],
)
def test_the_system_prompt_is_trained_on_where_a_template_leaves_it_out_once_an_answer_follows(
    messages: tuple[Message, ...], tools: Any, prompt: str, answer: str
) -> None:
    assert learned(row(*messages, tools=tools), MISTRAL) == (prompt + answer, answer)


@pytest.mark.parametrize("text", ["<ticket>1</ticket>", "0", "1", "(today)"])
def test_an_answer_that_begins_as_the_prompt_ends_is_learned_whole(text: str) -> None:
    for end in ("<think>\n", "(today)<assistant>"):
        template = TEXT_ONLY.replace("<assistant>{% endif", f"<assistant>{end}{{% endif")
        whole, answer = learned(row(ASKED[0], Message(role=Role.ASSISTANT, content=text)), template)
        assert (whole, answer) == (f"<user>Where?|<assistant>{end}{text}|", f"{text}|")


@pytest.mark.parametrize(
    "template",
    [
        # The user's words stand otherwise once an answer follows.
        "{% for m in messages %}<{{ m.role }}>{{ m.content | upper if loop.last else m.content }}|{% endfor %}",
        # Something that is no part of the prompt is before the answer.
        TEXT_ONLY.replace("<assistant>{% endif", "(today)<assistant>{% endif").replace(
            "<{{ m.role }}>", "{% if m.role == 'assistant' %}(then){% endif %}<{{ m.role }}>"
        ),
        # The answer is left out.
        "{% for m in messages if m.role == 'user' %}<user>{{ m.content }}|{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
    ],
)
def test_a_row_whose_answer_cannot_be_told_from_its_prompt_is_skipped(template: str) -> None:
    assert tokenize(row(ASKED[0], REFUND, tools=()), Characters(template)) is None


@pytest.mark.parametrize(
    ("before_answers", "at_the_end_of_prompts", "served"),
    [
        ("<think>\n\n</think>\n\n", "", ""),  # As Qwen3's template.
        ("", "<think>\n", "<think>\n"),  # As that of DeepSeek's distilled models.
        ("", "<think></think>", "<think></think>"),
        ("<think>\n\n</think>\n\n", "<think>\n", "<think>\n"),
    ],
)
def test_a_thought_that_only_the_template_writes_is_not_learned(
    before_answers: str, at_the_end_of_prompts: str, served: str
) -> None:
    """An engine asks for a label where its prompt ends: learned behind a thought, it is another model's answer."""
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
        + f"{before_answers}{{% endif %}}{{{{ m.content }}}}|{{% endfor %}}"
        + f"{{% if add_generation_prompt %}}<assistant>{at_the_end_of_prompts}{{% endif %}}"
    )
    whole, answer = learned(row(ASKED[0], Message(role=Role.ASSISTANT, content="There.")), template)
    assert (whole, answer) == (f"<user>Where?|<assistant>{served}There.|", "There.|")


def test_a_row_whose_tool_calls_the_template_leaves_out_is_skipped() -> None:
    assert tokenize(row(ASKED[0], FIND), Characters(TEXT_ONLY)) is None


def test_rows_that_cannot_be_trained_on_are_counted_by_their_reason() -> None:
    fine = row(ASKED[0], Message(role=Role.ASSISTANT, content="There."))
    long = row(ASKED[0], Message(role=Role.ASSISTANT, content="x" * 150))
    tools = tuple({"type": "function", "function": {"name": json.dumps(n)}} for n in range(60))
    by_tools = row(ASKED[0], Message(role=Role.ASSISTANT, content="There."), tools=tools)
    refused = row(Message(role="critic", content="no"), Message(role=Role.ASSISTANT, content="There."))
    tokenizer = Characters(WITH_TOOLS)
    heavy = fine.model_copy(update={"weight": 2.5})
    lax = SPEC.model_copy(update={"training": SPEC.training.model_copy(update={"max_skipped_share": 0.6})})
    fitting, skipped = tokenize_rows([fine, long, by_tools, refused, heavy], tokenizer, lax)
    assert ([row.weight for row in fitting[:2]], skipped) == ([1.0, 2.5], SkippedRows(too_long=2, not_rendered=1))
    with pytest.raises(StepImpossible, match=r"1 of 1 training rows \(100%\) cannot .* and 1 are not taken"):
        tokenize_rows([refused], tokenizer, lax)


def test_rows_that_teach_not_to_obey_a_users_text_come_last_if_they_fit() -> None:
    fine = [row(ASKED[0], Message(role=Role.ASSISTANT, content="There.")) for _ in range(10)]
    fitting, skipped = tokenize_rows(fine, Characters(WITH_TOOLS), SPEC)
    assert (len(fitting), skipped.total) == (12, 0)
    for added in fitting[10:]:
        text = "".join(map(chr, added.tokens))
        assert "<user>Where? " in text and text.endswith("|<assistant>There.|")
    short = SPEC.model_copy(update={"training": SPEC.training.model_copy(update={"max_length": 40})})
    fitting, skipped = tokenize_rows(fine, Characters(WITH_TOOLS), short)
    assert (len(fitting), skipped.total) == (10, 0)


def test_a_data_set_without_rows_is_refused() -> None:
    with pytest.raises(StepImpossible, match="no training rows") as refused:
        tokenize_rows([], Characters(WITH_TOOLS), SPEC)
    assert "corrected" in refused.value.way_out


def test_more_skipped_rows_than_the_bar_allows_stop_the_training() -> None:
    """A data set that lost a tenth of its rows, the long ones, trained without a word."""
    fine = row(ASKED[0], Message(role=Role.ASSISTANT, content="There."))
    long = row(ASKED[0], Message(role=Role.ASSISTANT, content="x" * 150))
    assert tokenize_rows([long, *[fine] * 19], Characters(WITH_TOOLS), SPEC)[1].too_long == 1
    with pytest.raises(StepImpossible, match=r"2 of 20 training rows \(10%\) .* 2 are longer than 150") as stopped:
        tokenize_rows([long, long, *[fine] * 18], Characters(WITH_TOOLS), SPEC)
    assert "training.max_length" in stopped.value.way_out and "training.max_skipped_share" in stopped.value.way_out
