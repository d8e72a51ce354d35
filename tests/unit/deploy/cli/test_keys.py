"""`ratchet keys`: the keys that it creates open the gateway, and its errors say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deploy.cli import output
from deploy.cli.app import app
from services.gateway.auth.grants import AccessControl, Grant
from services.gateway.auth.keys import read_keys, write_keys
from shared.http import HttpError

Keys = Callable[..., Result]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    return tmp_path / "gateway" / "keys.json"


@pytest.fixture
def keys(file: Path) -> Keys:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["keys", *arguments], env={"COLUMNS": "200"})

    return run


def grant(file: Path, key: str) -> Grant:
    access = AccessControl(file, file.with_name("had-keys"))
    access.reload()
    return access.grant([(b"authorization", b"Bearer " + key.encode())])


def opens(file: Path, key: str, task: str = "support") -> bool:
    try:
        grant(file, key).require(task)
    except HttpError:
        return False
    return True


def made(result: Result) -> str:
    """The key that a command printed: all of its output."""
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_a_created_key_opens_its_tasks_and_is_all_of_the_output(file: Path, keys: Keys) -> None:
    result = keys("create", "shop", "--task", "support", "--task", "reviews")
    key = made(result)
    assert key.startswith("rk_") and "\n" not in key
    assert "first key" in result.stderr and key not in result.stderr
    assert [opens(file, key, task) for task in ("support", "reviews", "payroll")] == [True, True, False]
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_second_key_of_an_app_leaves_the_first_valid(file: Path, keys: Keys) -> None:
    first = made(keys("create", "shop"))
    result = keys("create", "shop", "--expires", "1")
    assert opens(file, first) and opens(file, made(result))
    assert "first key" not in result.stderr


def test_the_list_shows_ids_tasks_limits_and_expiry_but_no_key(file: Path, keys: Keys) -> None:
    key = made(keys("create", "shop", "--task", "support", "--rate", "5", "--burst", "20"))
    made(keys("create", "import", "--expires", "30", "--bytes-per-minute", "2000000"))
    (stored, _) = read_keys(file) or ()
    listed = keys("list").output
    for text in (stored.id, "support", "5/s, 20 at once", "never", "import", "all tasks", "2000000 bytes/min"):
        assert text in listed
    assert key not in listed and stored.digest not in listed


def test_a_key_may_pass_through_only_if_it_was_created_so_and_its_rotation_keeps_it(file: Path, keys: Keys) -> None:
    plain, passing = made(keys("create", "shop")), made(keys("create", "agents", "--task", "support", "--pass-through"))
    assert [grant(file, key).pass_through for key in (plain, passing)] == [False, True]
    assert keys("list").output.count("and models that pass through") == 1
    assert grant(file, made(keys("rotate", "agents"))).pass_through
    made(keys("create", "agents", "--task", "support"))
    assert "different grants" in keys("rotate", "agents").output


def test_a_rotated_key_overlaps_with_the_old_one_and_has_its_grants(file: Path, keys: Keys) -> None:
    old = made(keys("create", "shop", "--task", "support", "--rate", "5", "--expires", "90"))
    new = made(keys("rotate", "shop", "--overlap", "2"))
    assert opens(file, old) and opens(file, new) and not opens(file, new, "payroll")
    before, after = read_keys(file) or ()
    assert after.requests_per_second == 5.0
    soon = datetime.now(UTC) + timedelta(hours=2)
    assert before.expires_at and after.expires_at
    assert abs(before.expires_at - soon) < timedelta(minutes=1)
    assert abs(after.expires_at - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=1)
    newest = made(keys("rotate", "shop", "--overlap", "0"))
    assert [opens(file, key) for key in (old, new, newest)] == [False, False, True]


def test_a_rotation_extends_no_key_and_drops_expired_ones(file: Path, keys: Keys) -> None:
    key = made(keys("create", "shop"))
    (stored,) = read_keys(file) or ()
    now = datetime.now(UTC)
    ended = stored.model_copy(update={"digest": "0" * 64, "expires_at": now - timedelta(seconds=1)})
    ending = stored.model_copy(update={"expires_at": now + timedelta(minutes=5)})
    write_keys(file, [ended, ending])
    made(keys("rotate", "shop"))
    assert next(key.expires_at for key in read_keys(file) or ()) == ending.expires_at
    assert len(read_keys(file) or ()) == 2
    assert opens(file, key)


def test_keys_with_different_grants_are_rotated_by_id_only(file: Path, keys: Keys) -> None:
    support = made(keys("create", "shop", "--task", "support"))
    payroll = made(keys("create", "shop", "--task", "payroll"))
    refused = keys("rotate", "shop")
    assert refused.exit_code == 1 and "--key ID" in refused.output
    stored = (read_keys(file) or ())[0]
    new = made(keys("rotate", "shop", "--key", stored.id, "--overlap", "0"))
    assert [opens(file, support), opens(file, new), opens(file, payroll, "payroll")] == [False, True, True]


def test_a_revoked_key_ends_at_once_and_revoking_the_last_one_warns(file: Path, keys: Keys) -> None:
    first, second, other = (made(keys("create", name)) for name in ("shop", "shop", "import"))
    assert keys("revoke", (read_keys(file) or ())[0].id).exit_code == 0
    assert [opens(file, key) for key in (first, second, other)] == [False, True, True]
    assert keys("revoke", "--app", "shop").exit_code == 0
    result = keys("revoke", "--app", "import")
    assert "refuses every request" in result.output and str(file) in result.output.replace("\n", "")
    assert not opens(file, other)
    assert "All keys are revoked" in keys("list").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "Shop"), "lower-case"),
        (("create", "shop/../x"), "lower-case"),
        (("create", "shop", "--burst", "3"), "--rate"),
        (("create", "shop", "--rate", "0"), "--rate"),
        (("create", "shop", "--bytes-per-minute", "1"), "--bytes-per-minute"),
        (("create", "shop", "--expires", "-1"), "--expires"),
        (("revoke",), "--app"),
        (("revoke", "nothing"), "ratchet keys list"),
        (("revoke", "--app", "nothing"), "ratchet keys list"),
        (("rotate", "nothing"), "ratchet keys create nothing"),
    ],
)
def test_an_invalid_command_names_the_way_out_and_changes_nothing(
    file: Path, keys: Keys, arguments: tuple[str, ...], message: str
) -> None:
    made(keys("create", "shop"))
    before = file.read_bytes()
    result = keys(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert file.read_bytes() == before


def test_a_broken_file_is_not_changed(file: Path, keys: Keys) -> None:
    file.parent.mkdir()
    file.write_text('{"keys": [{"app": "shop", "digest": "secret"}]}')
    for arguments in (("create", "shop"), ("list",), ("rotate", "shop"), ("revoke", "--app", "shop")):
        result = keys(*arguments)
        assert result.exit_code == 1
        assert "Correct it, or restore it" in result.output and "secret" not in result.output
    assert "secret" in file.read_text()


def test_without_a_file_the_list_says_that_the_gateway_is_open(file: Path, keys: Keys) -> None:
    assert "open to anyone who reaches it" in keys("list").output
    assert not file.parent.exists()


def test_without_a_terminal_the_list_of_keys_has_whole_ids_and_as_json_no_hash(
    file: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in ("support-desk-of-the-north", "support-desk-of-the-south"):
        keys(
            "create", "nightly-import-of-the-warehouse", "--task", task, "--rate", "5", "--bytes-per-minute", "2000000"
        )
    stored = read_keys(file) or ()
    monkeypatch.setattr(output.console, "width", 80)  # As Rich takes a pipe for.
    shown = keys("list").stdout
    assert all(key.id in shown for key in stored)
    listed = json.loads(keys("list", "--json").stdout)
    assert [key["id"] for key in listed] == [key.id for key in sorted(stored, key=lambda key: key.created_at)]
    assert all(key.digest not in json.dumps(listed) for key in stored)
