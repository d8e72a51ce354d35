"""A misspelt setting is named: a gateway would run without keys, and nobody would know."""

from __future__ import annotations

import re

import pytest

from deploy.variables import unknown_variables
from tests.conftest import ROOT


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant() -> None:
    assert unknown_variables(["RATCHET_GATEWAY_REQUIRE_KEY", "RATCHET_HOME", "PATH"]) == [
        "RATCHET_GATEWAY_REQUIRE_KEY is no setting, and does nothing. Did you mean RATCHET_GATEWAY_REQUIRE_KEYS?"
    ]


def test_one_that_is_like_no_other_is_named_with_the_page_that_has_them() -> None:
    (problem,) = unknown_variables(["RATCHET_COLOUR"])
    assert "docs/configuration.md" in problem


@pytest.mark.parametrize(
    "name",
    ["RATCHET_JUDGE_KEY", "RATCHET_GATEWAY_SERVICE_HOST", "RATCHET_GATEWAY_SERVICE_PORT_HTTP",
     "RATCHET_GATEWAY_PORT_8080_TCP", "RATCHET_GATEWAY_PORT_8080_TCP_ADDR"],
)  # fmt: skip
def test_what_tasks_name_and_what_kubernetes_sets_is_no_mistake(name: str) -> None:
    assert not unknown_variables([name])


def test_every_variable_of_the_configuration_page_is_known() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    names = set(re.findall(r"`(RATCHET_[A-Z0-9_]*[A-Z0-9])`", page)) - {"RATCHET_"}
    assert len(names) > 80 and not unknown_variables(names)
