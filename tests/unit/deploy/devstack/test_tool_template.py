"""The default base model's chat template writes calls as vLLM's Hermes parser reads them, and all else as before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jinja2

from deploy.devstack.config import StackConfig
from deploy.devstack.install.models import CHAT_TEMPLATE, TOOL_TEMPLATE, ensure_tool_template

ORIGINAL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def render(template: str, messages: list[dict[str, Any]], prompt: bool = False) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)  # As transformers has it.
    return environment.from_string(template).render(messages=messages, add_generation_prompt=prompt)


def test_conversations_without_calls_are_written_as_before() -> None:
    ours = TOOL_TEMPLATE.read_text(encoding="utf-8")
    for messages in (
        [{"role": "user", "content": "hi\n there "}, {"role": "assistant", "content": "yo"}],
        [{"role": "system", "content": "be\nbrief"}, {"role": "user", "content": ""}],
    ):
        for prompt in (True, False):
            assert render(ours, messages, prompt) == render(ORIGINAL, messages, prompt)


def test_calls_follow_each_other_in_the_form_to_which_vllm_constrains_them() -> None:
    made = [
        {"type": "function", "function": {"name": "f", "arguments": {"a": "ü", "n": 1}}},
        {"type": "function", "function": {"name": "g", "arguments": {}}},
    ]
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    answer = {"role": "assistant", "content": None, "tool_calls": made}
    written = render(TOOL_TEMPLATE.read_text(encoding="utf-8"), [*asked, answer])
    assert written.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": "ü", "n": 1}}\n</tool_call>'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call><|im_end|>\n'
    )


def test_the_default_base_model_gets_it_and_a_model_of_the_users_keeps_its_own(tmp_path: Path) -> None:
    config = StackConfig.load(tmp_path, {})
    path = config.models / config.base_model_name / CHAT_TEMPLATE
    path.parent.mkdir(parents=True)
    path.write_text(ORIGINAL, encoding="utf-8")
    ensure_tool_template(dataclasses.replace(config, base_model="/models/mine/SmolLM2-135M-Instruct"))
    assert path.read_text(encoding="utf-8") == ORIGINAL
    ensure_tool_template(config)
    assert path.read_text(encoding="utf-8") == TOOL_TEMPLATE.read_text(encoding="utf-8")
