"""Tokens are counted as the trainer will: whole conversations, by the base model's own chat template."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from schemas.conversation import JsonObject, Message, Role, ToolCall
from services.dataset_builder.chat_tokens import ChatTokens
from tests.conftest import ROOT
from tests.waiting import PATIENCE_SECONDS

WITHOUT_TOOLS = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} end {% endfor %}"
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + WITHOUT_TOOLS
ASKED = Message(role=Role.USER, content="where is it")
ANSWER = Message(role=Role.ASSISTANT, content="in Lima")
TOOL: JsonObject = {"type": "function", "function": {"name": "find", "parameters": {}}}


def base_model(folder: Path, template: str) -> Path:
    """A model's folder, whose tokenizer counts words."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "find": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.chat_template = template
    fast.save_pretrained(str(folder))
    return folder


def test_an_example_has_the_tokens_that_the_chat_template_makes_of_it(tmp_path: Path) -> None:
    count = ChatTokens(base_model(tmp_path, WITHOUT_TOOLS))
    assert count((ASKED, ANSWER), ()) == len(["user", "where", "is", "it", "end", "assistant", "in", "Lima", "end"])


def test_a_conversation_that_the_template_refuses_has_no_tokens(tmp_path: Path) -> None:
    count = ChatTokens(base_model(tmp_path, REFUSING))
    assert count((Message(role=Role.SYSTEM, content="Be short."), ASKED, ANSWER), ()) is None


def test_half_of_an_escaped_character_in_a_call_has_no_tokens(tmp_path: Path) -> None:
    template = WITHOUT_TOOLS.replace("end {%", "{{ m.get('tool_calls', []) | tojson }} end {%")
    count = ChatTokens(base_model(tmp_path, template))
    for arguments, is_text in (('{"q": "\\ud83d\\ude00"}', True), ('{"q": "\\ud83d"}', False)):
        calling = Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="find", arguments=arguments),))
        assert (count((ASKED, calling, ANSWER), (TOOL,)) is not None) is is_text


@pytest.mark.parametrize(("template", "taken"), [(WITHOUT_TOOLS, False), (WITHOUT_TOOLS + "{{ tools }}", True)])
def test_a_template_that_leaves_tool_calls_out_does_not_take_them(tmp_path: Path, template: str, taken: bool) -> None:
    """What remains would teach the model to say nothing."""
    count = ChatTokens(base_model(tmp_path, template))
    calling = Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="find", arguments="{}"),))
    assert (count((ASKED, calling), (TOOL,)) is not None) is taken


def test_a_build_that_counts_tokens_loads_none_of_the_noise_models_libraries() -> None:
    """They take seconds and 100 MB, and the process with the models has them."""
    code = (
        "import sys, pathlib, services.dataset_builder.job, services.dataset_builder.chat_tokens as c;"
        "c.ChatTokens(pathlib.Path('x'));"
        "assert sys.modules.keys().isdisjoint({'sklearn', 'cleanlab', 'torch', 'transformers'})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=PATIENCE_SECONDS)
