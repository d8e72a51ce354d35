"""The documentation: its links lead somewhere, and what is generated is what the code says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from deploy.settings_reference import FILE, render

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
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
    if page.parent != ROOT or page.name != "CHANGELOG.md":
        broken += [path for path in PATH_IN_CODE.findall(text) if not (ROOT / path).exists()]
    assert broken == []


def test_the_configuration_page_is_what_the_settings_say() -> None:
    assert FILE.read_text(encoding="utf-8") == render()
