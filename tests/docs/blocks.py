"""The blocks of code in a page of documentation."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import NamedTuple

_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)
_HERE_DOCUMENT = re.compile(r"<<'(\w+)'\n.*?^\1$", re.DOTALL | re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Block:
    """A block: its page, the line where it begins, its language, its text; `not_run` is the reason, if it has one."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Command(NamedTuple):
    """A simple command of a shell: the variables set before it, its words, and the file that gets its output."""

    variables: dict[str, str]
    words: list[str]
    output: str | None


def read_blocks(page: str, text: str) -> list[Block]:
    return [
        Block(page, text.count("\n", 0, found.start("language")) + 1, found["language"], found["text"], found["reason"])
        for found in _FENCE.finditer(text)
    ]


def read_commands(text: str) -> list[Command]:
    """The simple commands of a shell's text, one after the other. A command is not known by its path, but its name."""
    typed = _COMMENT.sub("", _HERE_DOCUMENT.sub("", text)).replace("\\\n", " ")
    lexer = shlex.shlex(typed, posix=True, punctuation_chars="();|&<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    commands, words = [], list[str]()
    for token in [*lexer, "\n"]:
        if not set(token) <= set("();|&\n"):
            words.append(token)
        elif words:
            commands.append(_command(words))
            words = []
    return commands


def _command(words: list[str]) -> Command:
    output = None
    if ">" in words:
        at = words.index(">")
        output, words = words[at + 1], [*words[:at], *words[at + 2 :]]
    words = words[words[0] == "export" :]
    count = next((number for number, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))
    variables = dict(word.split("=", 1) for word in words[:count])
    return Command(
        variables, [word.rpartition("/")[2] if not at else word for at, word in enumerate(words[count:])], output
    )
