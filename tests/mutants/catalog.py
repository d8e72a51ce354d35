"""The planted faults: `faults/<room>.toml`, read and checked.

A fault is a fact that must never become true, the change that makes it true, and the test that sees it:

    [[fault]]
    fact = "a redelivered prediction is stored again"
    file = "services/prediction_log/storage.py"
    old = "if position <= committed:"
    new = "if position < committed:"
    test = "tests/unit/prediction_log/test_domain.py::test_a_redelivered_prediction_is_kept_once"

`old` occurs once in the file. A fault whose machinery is gone is told as `[[struck]]`, with its fact and the reason.
"""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from pathlib import Path

from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).parent.parent.parent
FAULTS = Path(__file__).parent / "faults"


class Fault(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    room: str
    fact: str
    file: str
    old: str
    new: str
    test: str
    """One test as pytest names it, without parameters."""

    def plant(self, source: str) -> str:
        """The file's text with the fault in it. Raises ValueError if it cannot be planted."""
        if (found := source.count(self.old)) != 1:
            raise ValueError(f"{self.room}, {self.fact!r}: `old` occurs {found} times in {self.file}, not once")
        planted = source.replace(self.old, self.new)
        if self.file.endswith(".py"):
            ast.parse(planted, self.file)
        return planted


class Struck(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    fact: str
    reason: str


def rooms() -> list[str]:
    return sorted(path.stem for path in FAULTS.glob("*.toml"))


def faults_of(room: str) -> list[Fault]:
    return [Fault(room=room, **entry) for entry in _read(room).get("fault", [])]


def struck() -> list[Struck]:
    return [Struck(**entry) for room in rooms() for entry in _read(room).get("struck", [])]


def problems(faults: list[Fault], root: Path = ROOT) -> list[str]:
    """Why some of these faults cannot be planted, or are not seen by a test that exists; a sentence each."""
    found = [f"told twice: {fact!r}" for fact, times in Counter(fault.fact for fault in faults).items() if times > 1]
    for fault in faults:
        try:
            fault.plant((root / fault.file).read_text())
            file, *names = fault.test.split("::")
            if not names or f"def {names[-1]}(" not in (root / file).read_text():
                raise ValueError(f"{fault.room}, {fault.fact!r}: there is no test {fault.test}")
        except (ValueError, SyntaxError, FileNotFoundError) as error:
            found.append(str(error))
    return found


def _read(room: str) -> dict[str, list[dict[str, str]]]:
    return tomllib.loads((FAULTS / f"{room}.toml").read_text())
