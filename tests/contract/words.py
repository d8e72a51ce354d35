"""`python -m tests.contract.words`, part of `make lint`: pages with more words than they may have, and long sentences.

Code blocks, comments and what is generated are not counted. Exits with 1 if a page, or all of `docs/`, is over its
limit.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = {"docs/configuration.md"}
MAX_WORDS = 18_000
"""Of all pages in `docs/`."""
LIMITS = {"README.md": 1_200, "CONTRIBUTING.md": 1_300, "CHANGELOG.md": 800, "docs/benchmarks.md": 2_500}
PAGE_LIMIT = 2_200
"""Of a page that has no limit of its own."""
SHOWN_SENTENCES = 10
_CODE = re.compile(r"^\s*```.*?^\s*```|<!--.*?-->", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_ENDS = re.compile(r"(?<=[.:!?])\s+(?=[A-Z`*\[(])")
_BREAKS = re.compile(r"\n\s*\n|\n\s*(?:[-*]|\d+\.)\s+|^#+ .*$|^>|\|", re.MULTILINE)


def prose(page: Path) -> str:
    return _CODE.sub("\n\n", page.read_text(encoding="utf-8"))


def words(text: str) -> int:
    return len(text.split())


def sentences(text: str) -> list[str]:
    blocks = _BREAKS.split(_LINK.sub(r"\1", text))
    return [" ".join(sentence.split()) for block in blocks if block for sentence in _ENDS.split(block)]


def main() -> None:
    pages = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})
    texts = {str(page.relative_to(ROOT)): prose(page) for page in pages}
    counts = {name: words(text) for name, text in texts.items() if name not in GENERATED}
    over = [
        f"{name}: {count} words, {limit} at most"
        for name, count in counts.items()
        if count > (limit := LIMITS.get(name, PAGE_LIMIT))
    ]
    total = sum(count for name, count in counts.items() if name.startswith("docs/"))
    if total > MAX_WORDS:
        over.append(f"docs/: {total} words, {MAX_WORDS} at most")
    found = [(words(sentence), name, sentence) for name in counts for sentence in sentences(texts[name])]
    lengths = [length for length, *_ in found if length > 2]
    print(f"docs/: {total} words; a sentence has {sum(lengths) / len(lengths):.1f} in the mean. The longest:")
    for length, name, sentence in sorted(found, reverse=True)[:SHOWN_SENTENCES]:
        print(f"  {length} words, {name}: {sentence[:100]}…")
    if over:
        sys.exit("\n".join(over))


if __name__ == "__main__":
    main()
