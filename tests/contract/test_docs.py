"""The documentation: links lead somewhere, commands and settings exist, what is generated is what the code says."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.settings_reference import FILE, render
from tests.docs.commands import COMMANDS, command_fault

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|[`\s/])ratchet +([a-z][^`\n#;&|>]*)", re.MULTILINE)
SETTING = re.compile(r"\bRATCHET_[A-Z0-9_]*[A-Z0-9]\b")
QUOTED_DEFAULT = re.compile(r"`(RATCHET_\w+)`(?: \| |\s\()(\d[\d.,]*\b)(?: (KiB|MiB|GiB))?")
"""A setting with its default after it: in the next cell of a table, or in brackets."""
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
"""A number by itself, unlike those in Banking77, 135M or p50."""
BYTES = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
SETTINGS = set(SETTING.findall(render()))
SETTINGS_OF_TESTS = {"RATCHET_TEST_HOME", "RATCHET_BENCH_SEED", "RATCHET_BANKING77"}
PATH_IN_CODE = re.compile(r"`((?:schemas|shared|services|deploy|client|tests|docs)/[\w./-]*[\w/])(?:::?[\w.]+)?`")
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    if not name.startswith(("tests/chaos/results", "tests/benchmarks/results"))
)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_path_named_in_a_page_leads_somewhere(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    broken += re.findall(r"^[A-Z]+_[A-Z_]+$", text, re.MULTILINE)  # A placeholder that was never filled.
    broken += [path for path in PATH_IN_CODE.findall(text) if not (ROOT / path).exists()]
    assert broken == []


def faults_in(text: str) -> dict[str, str]:
    """Return each command of `ratchet` that a text names and that does not exist, with what is wrong with it."""
    found = dict[str, str]()
    for command in COMMAND.findall(text):
        command, *_ = command.split("  ")  # What it does stands behind it.
        try:
            words = shlex.split(command)
        except ValueError:  # It ends inside quotes, at a character that no command of ours has outside them.
            words = command.partition('"')[0].split()
        if fault := command_fault(words, whole=False):
            found[command] = fault
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_option_and_setting_named_in_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    in_code = "\n".join(re.findall(r"`[^`\n]+`", CODE.sub("", text)))  # Blocks: tests/docs.
    assert faults_in(in_code) == {}
    assert set(SETTING.findall(text)) - SETTINGS <= SETTINGS_OF_TESTS


def test_the_defaults_that_pages_quote_are_those_of_the_settings() -> None:
    defaults = dict(re.findall(r"^\| `(RATCHET_\w+)` \| `?(.*?)`? \|", render(), re.MULTILINE))
    pages = [page.read_text(encoding="utf-8") for page in PAGES if page != FILE]
    quoted = [found for page in pages for found in QUOTED_DEFAULT.findall(page)]
    assert len(quoted) > 8
    wrong = [
        (name, number, unit, defaults[name]) for name, number, unit in quoted
        if float(defaults[name]) != float(number.replace(",", "")) * BYTES[unit]
    ]  # fmt: skip
    assert wrong == []


def test_the_figures_in_the_benchmark_tables_are_those_of_committed_results() -> None:
    """Each may be rounded, and a percentage may be a share in the result. Sections without a result are not checked."""
    page = ROOT / "docs" / "benchmarks.md"
    checked, wrong = 0, []
    for section in page.read_text(encoding="utf-8").split("\n## "):
        results = [page.parent / link for link in LINK.findall(section) if re.search(r"/results/.+\.(json|md)$", link)]
        text = "\n".join(result.read_text(encoding="utf-8") for result in results)
        known = {float(number.replace(",", "")) for number in NUMBER.findall(text)}
        table = "\n".join(line for line in section.splitlines() if line.startswith("| ") and results)
        for found in re.finditer(rf"({NUMBER.pattern})( %)?", table):
            number, scales = found[1].replace(",", ""), (1, 100) if found[2] else (1,)
            half = 0.5001 * 10.0 ** -len(number.partition(".")[2])
            checked += 1
            if not any(abs(value * scale - float(number)) <= half for value in known for scale in scales):
                wrong.append((section.partition("\n")[0], found[0]))
    assert checked > 200
    assert wrong == []


def helps(found: Any) -> Iterator[str]:
    """Yield the help of a command and of all below it."""
    yield found.help or ""
    for command in getattr(found, "commands", {}).values():
        yield from helps(command)


def test_every_command_and_option_named_in_the_help_of_a_command_exists() -> None:
    text = re.sub(r"\b[A-Z_]+=\S+ ", "", "\n".join(helps(COMMANDS)))  # Settings before a command may end with its name.
    assert len(COMMAND.findall(text)) > 50
    assert faults_in(text) == {}


def texts_of(source: Path) -> Iterator[str]:
    """Yield a regular expression for each string of a module; a value that is put into it is anything."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.escape(node.value)


def test_the_steps_that_the_readme_shows_are_those_that_the_loop_prints() -> None:
    printed = {text for source in (ROOT / "deploy" / "demo").rglob("*.py") for text in texts_of(source)}
    titles = [text for text in printed if len(text.replace(".+", "")) > 10]
    shown = re.findall(r"^▶ (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) > 10
    assert [step for step in shown if not any(re.fullmatch(title, step) for title in titles)] == []


def test_the_configuration_page_is_what_the_settings_say() -> None:
    assert FILE.read_text(encoding="utf-8") == render()
