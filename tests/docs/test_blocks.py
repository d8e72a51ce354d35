"""Every block of the documentation is what the code takes, and each command of `ratchet` is called for real."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.contract.test_docs import PAGES
from tests.docs.blocks import Block, read_blocks, read_commands
from tests.docs.checks import faults
from tests.docs.commands import ELSEWHERE, ONCE, all_commands, command_of

PLANTED = {
    "make lop": ("sh", "make lop\n"),
    "an option that the loop does not have": ("sh", 'make loop ARGS="--fast"\n'),
    "a wrong command": ("sh", "ratchet dataset shw support-desk-1\n"),
    "an argument too many": ("sh", "ratchet evaluation list support-desk weekly\n"),
    "an argument that is missing": ("sh", "ratchet rollout pause\n"),
    "a setting that does not exist": ("sh", "export RATCHET_GATEWAY_KAFKAS=kafka:9092\n"),
    "a value that a setting refuses": ("sh", "export RATCHET_KAFKA_REPLICATION=three\n"),
    "an extra that does not exist": ("sh", "pip install '.[gatewy]'\n"),
    "a wrong URL": ("sh", "curl http://127.0.0.1:28080/v1/prediction -d '{}'\n"),
    "a port where nothing listens": ("sh", "curl http://127.0.0.1:28099/v1/models\n"),
    "a wrong method of OpenAI's client": (
        "python", 'from openai import OpenAI\nclient = OpenAI(api_key="k")\nclient.chat.completion.create(model="t")\n',
    ),
    "an argument that a client does not take": (
        "python", "import ratchet\nclient = ratchet.Client('http://h:1', token='k')\n",
    ),
    "a key that no task has": ("yaml", "training:\n  epoch: 3\n"),
    "a line of a golden set without its label": ("json", '{"text": "Where is it?"}\n'),
    "broken shell": ("sh", "for x in 1; do echo $x\n"),
}  # fmt: skip


def blocks() -> Iterator[tuple[Block, str]]:
    """Yield each block with the Python that its page has before it."""
    for page in PAGES:
        before = ""
        for block in read_blocks(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")):
            yield block, before
            before += block.text if block.language == "python" else ""


@pytest.mark.parametrize(("block", "before"), [pytest.param(*found, id=str(found[0])) for found in blocks()])
def test_a_block_is_what_the_code_takes(block: Block, before: str) -> None:
    assert faults(block, before) == []


@pytest.mark.parametrize(("language", "text"), PLANTED.values(), ids=PLANTED)
def test_a_mistake_in_a_block_is_seen(language: str, text: str) -> None:
    assert faults(Block("page.md", 1, language, text))


def test_every_fence_is_read() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert 2 * len(read_blocks(str(page), text)) == len(re.findall(r"^\s*```", text, re.MULTILINE)), page


def test_every_command_is_called_for_real() -> None:
    """By a block that is run, after them (`ONCE`), or by another stack (`ELSEWHERE`), whose file has the call."""
    run = [
        command_of(command.words[1:])
        for block, _ in blocks() if block.language == "sh" and block.not_run is None
        for command in read_commands(block.text) if command.words[:1] == ["ratchet"]
    ]  # fmt: skip
    assert set(all_commands()) == {*run, *ONCE, *ELSEWHERE}
    for file, text in ELSEWHERE.values():
        assert text in (ROOT / file).read_text(encoding="utf-8"), file
