"""The independent check of a run: sentences about what did not hold; empty if everything did."""

from __future__ import annotations

from tests.chaos.rollouts.checks.flags import change_problems, flag_problems
from tests.chaos.rollouts.checks.history import History
from tests.chaos.rollouts.checks.moves import draw_problems, move_problems
from tests.chaos.rollouts.checks.tickets import ledger_problems

CHECKS = {
    "moves": move_problems,
    "levels": draw_problems,
    "ledger": ledger_problems,
    "flags": flag_problems,
    "events": change_problems,
}


def check(history: History) -> dict[str, list[str]]:
    """Return by check what is wrong."""
    return {name: list(find(history)) for name, find in CHECKS.items()}
