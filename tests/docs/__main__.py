"""`python -m tests.docs`: every block that a reader can run is run, in the pages' order, on the stack of a loop.

The task `support-desk` has had its cycle, and the stack runs. Names of versions in the pages stand for those of this
stack. Prints a line for each block; exits with 1 where one fails.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import ROOT
from tests.docs.blocks import Block, read_blocks, read_commands
from tests.docs.commands import ONCE

PAGES = (
    "docs/tutorial.md", "docs/datasets.md", "docs/evaluation.md", "docs/approaches.md",
    *sorted(f"docs/how-to/{page.name}" for page in (ROOT / "docs" / "how-to").glob("*.md")),
    "client/README.md", "docs/gateway.md",
)  # fmt: skip
"""The gateway's page is the last one: once it has made a key, a client needs one."""
PLACES = {
    "support-desk-9b1c2d3e4f50": ("dataset", r'"id": "(.+)"', -1),
    "support-desk-90d2b1c4": ("dataset", r'"id": "(.+)"', 0),
    "support-desk-3f2a9c01b2d4": ("evaluation", r'"adapter": "(.+)"', 0),  # The loop's: a restart's may be stopped.
    "g-5f0c52d1a9be": ("golden", r'"row_id": "(.+)"', -1),
}
"""Made-up names in the pages, and where this stack's are listed, oldest first."""
DONE_BY_HAND = {
    "docs/tutorial.md:18": "sed -i s,meta-llama/Llama-3.1-8B-Instruct,SmolLM2-135M-Instruct, my-task.yaml",
    "docs/tutorial.md:26": "until curl -s localhost:28080/v1/models | grep my-task; do sleep 1; done",
}
"""What a reader edits behind a block; and while they read on, the gateway learns of a new task."""
BIN = ROOT / ".venv" / "bin"
HOME = Path(os.environ.get("RATCHET_HOME", ROOT / ".ratchet"))


class Reader:
    """Somebody who types what the pages show, in a folder that has the checkout's tasks and its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, target in (("deploy", ROOT / "deploy"), (".venv", ROOT / ".venv"), (".ratchet", HOME)):
            (folder / name).symlink_to(target)
        self.env = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}", "BROWSER": "true", "PYTHONPATH": str(ROOT),
            "RATCHET_HOME": str(HOME),
        }  # fmt: skip
        self.failed = 0

    def run(self, name: str, language: str, text: str) -> None:
        """Run a text, say yes where a command asks, and count it where it fails."""
        text = text if language == "python" else self.with_names_of_this_stack(text)
        argv = [BIN / "python", "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        began = time.monotonic()
        done = subprocess.run(
            argv, cwd=self.folder, env=self.env, input="y\n", capture_output=True, text=True, check=False, timeout=600
        )
        print(f"{'ok' if not done.returncode else 'FAILED'} {name} {time.monotonic() - began:.1f} s", flush=True)
        if done.returncode:
            self.failed += 1
            print(text, done.stdout[-2_000:], done.stderr[-2_000:], sep="\n")

    def printed(self, *words: str) -> str:
        return subprocess.run(
            [BIN / "ratchet", *words], env=self.env, cwd=self.folder, capture_output=True, text=True, check=True
        ).stdout

    def with_names_of_this_stack(self, text: str) -> str:
        """Put this stack's data set, adapter, golden row and model where the pages have made-up ones."""
        for name, (command, pattern, at) in PLACES.items():
            if name in text:
                text = text.replace(
                    name, re.findall(pattern, self.printed(command, "list", "support-desk", "--json"))[at]
                )
        return text


def runs(block: Block) -> bool:
    """Whether a block does anything: what only sets variables is for another terminal."""
    if block.not_run or block.language not in ("sh", "python"):
        return False
    return block.language == "python" or any(command.words for command in read_commands(block.text))


def parts(block: Block) -> list[str]:
    """The commands of a shell's block, each of which may need a name that the one before it made; else the block."""
    if block.language == "python" or "'" in block.text:
        return [block.text]
    return block.text.replace("\\\n", " ").strip().split("\n")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(Path(folder))
        for page in PAGES:
            for block in filter(runs, read_blocks(page, (ROOT / page).read_text(encoding="utf-8"))):
                for part in parts(block):
                    reader.run(f"{block}: {part.strip().partition(chr(10))[0]}", block.language, part)
                if by_hand := DONE_BY_HAND.get(str(block)):
                    reader.run(by_hand, "sh", by_hand)
        for command in ONCE.values():
            reader.run(command, "sh", f"ratchet {command}")
    return 1 if reader.failed else 0


if __name__ == "__main__":
    sys.exit(main())
