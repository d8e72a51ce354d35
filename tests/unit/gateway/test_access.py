"""API keys: access, rate limits, and changes of the keys file without a restart."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.gateway.auth import grants
from services.gateway.auth.grants import AccessControl
from services.gateway.auth.keys import ApiKey, KeysUnreadable, new_key, read_keys, write_keys
from services.gateway.settings import GatewaySettings
from shared.http import HttpError
from tests.waiting import PATIENCE_SECONDS

START = datetime(2026, 3, 1, tzinfo=UTC)


def check(access: AccessControl, headers: list[tuple[bytes, bytes]], task: str, size: int = 0) -> str | None:
    """What the gateway checks of a request for a task whose body has this size: the app that may send it."""
    grant = access.grant(headers)
    access.charge(grant, size)
    grant.require(task)
    return grant.app


@dataclass
class GatewayKeys:
    """A keys file, the access control that reads it, and a clock that tests set."""

    file: Path
    required: bool | None = None
    seconds: float = START.timestamp()

    def __post_init__(self) -> None:
        remembered = self.file.parent.parent / "had-keys"
        clock = lambda: self.seconds  # noqa: E731
        self.access = AccessControl(self.file, remembered, self.required, None, clock, clock)
        self.entries: list[ApiKey] = []

    def add(self, app: str = "shop", **fields: Any) -> str:
        key, digest = new_key()
        self.write(*self.entries, ApiKey(app=app, digest=digest, created_at=START, **fields))
        return key

    def write(self, *keys: ApiKey) -> None:
        self.entries = list(keys)
        write_keys(self.file, self.entries)
        self.access.reload()

    def check(self, headers: list[tuple[bytes, bytes]], task: str, size: int = 0) -> str | None:
        return check(self.access, headers, task, size)

    def refusal(self, headers: list[tuple[bytes, bytes]], task: str = "support", size: int = 0) -> HttpError:
        with pytest.raises(HttpError) as refused:
            self.check(headers, task, size)
        return refused.value


@pytest.fixture
def keys(tmp_path: Path) -> GatewayKeys:
    keys = GatewayKeys(tmp_path / "gateway" / "keys.json")
    keys.access.reload()
    return keys


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"gateway"), (b"authorization", f"Bearer {key}".encode()), (b"content-length", b"2")]


def test_without_a_file_every_request_is_allowed_and_readyz_says_so(keys: GatewayKeys) -> None:
    assert keys.check([], "support") is None
    assert keys.check(bearer("sk-whatever"), "support") is None
    assert keys.access.missing() == []
    assert ["may use it" in note for note in keys.access.notes()] == [True]


def test_with_keys_required_and_no_file_every_request_is_refused(tmp_path: Path) -> None:
    keys = GatewayKeys(tmp_path / "gateway" / "keys.json", required=True)
    keys.access.reload()
    assert (keys.refusal([]).status, keys.refusal(bearer("rk_x")).status) == (401, 401)
    assert "every request is refused" in keys.access.notes()[0]
    key = keys.add()
    assert keys.check(bearer(key), "support") == "shop"
    assert keys.access.notes() == []


def test_before_the_file_is_read_every_request_is_refused(tmp_path: Path) -> None:
    keys = GatewayKeys(tmp_path / "gateway" / "keys.json")
    assert keys.refusal([]).status == 503
    assert len(keys.access.missing()) == 1


def test_revoking_the_last_key_does_not_open_the_gateway(keys: GatewayKeys) -> None:
    key = keys.add()
    keys.write()
    assert keys.refusal(bearer(key)).status == 401
    assert keys.refusal([]).status == 401


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {} "])
def test_a_key_is_taken_from_authorization_in_any_spelling_of_bearer(keys: GatewayKeys, form: str) -> None:
    key = keys.add("web.shop-2")
    assert keys.check([(b"authorization", form.format(key).encode())], "support") == "web.shop-2"


@pytest.mark.parametrize("name", [b"api-key", b"x-api-key"])
def test_the_headers_for_keys_alone_win_over_authorization(keys: GatewayKeys, name: bytes) -> None:
    key = keys.add()
    own = (name, key.encode())
    for other in (b"Basic dXNlcjpwYXNz", b"Bearer unused"):
        assert keys.check([(b"authorization", other), own], "support") == "shop"
        assert keys.check([own, (b"authorization", other)], "support") == "shop"


def test_a_proxys_own_x_api_key_does_not_hide_the_key_in_authorization(keys: GatewayKeys) -> None:
    own, proxys = (b"authorization", b"Bearer " + keys.add().encode()), (b"x-api-key", b"of-the-proxy")
    assert keys.check([own, proxys], "support") == keys.check([proxys, own], "support") == "shop"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "missing_api_key"),
        ([(b"x-api-key", b"rk_x")], "invalid_api_key"),
        ([(b"x-api-key", b"sk-ant-of-somebody-else")], "invalid_api_key"),
        ([(b"authorization", b"")], "invalid_api_key"),
        ([(b"authorization", b"Bearer")], "invalid_api_key"),
        ([(b"authorization", b"Bearer ")], "invalid_api_key"),
        ([(b"authorization", b"Basic dXNlcjpwYXNz")], "invalid_api_key"),
        ([(b"authorization", b"rk_without-its-scheme")], "invalid_api_key"),
        ([(b"authorization", b"Bearer sk-of-somebody-else")], "invalid_api_key"),
        ([(b"authorization", b"Bearer rk_" + b"x" * 43)], "invalid_api_key"),
        ([(b"authorization", b"Bearer rk_" + b"x" * 1_000_000)], "invalid_api_key"),
        ([(b"authorization", "Bearer rk_schlüssel".encode())], "invalid_api_key"),
        ([(b"authorization", b"Bearer \xff\xfe\x00")], "invalid_api_key"),
        ([(b"api-key", b"")], "invalid_api_key"),
    ],
)
def test_a_malformed_key_is_refused_with_openais_error_and_never_quoted(
    keys: GatewayKeys, headers: list[tuple[bytes, bytes]], code: str
) -> None:
    keys.add()
    error = keys.refusal(headers)
    assert (error.status, error.body["error"]["code"]) == (401, code)
    assert error.headers == {"www-authenticate": "Bearer"}
    assert set(error.body["error"]) == {"message", "type", "param", "code"}
    body = str(error.body)
    assert not any(word in body for word in ("somebody", "xxx", "schl", "dXNl", "without-its"))


def test_a_key_allows_its_own_tasks_only(keys: GatewayKeys) -> None:
    key = keys.add(tasks=("support", "haiku"))
    assert keys.check(bearer(key), "haiku") == "shop"
    error = keys.refusal(bearer(key), "payroll")
    assert (error.status, error.body["error"]["code"], error.body["error"]["param"]) == (
        403, "task_not_allowed", "model",
    )  # fmt: skip
    assert "haiku, support" in error.body["error"]["message"]
    grant = keys.access.grant(bearer(key))
    assert [task for task in ("haiku", "payroll", "support") if grant.allows(task)] == ["haiku", "support"]


def test_a_key_is_refused_from_the_second_it_expires(keys: GatewayKeys) -> None:
    key = keys.add(expires_at=START + timedelta(days=1))
    keys.seconds += 86_399.9
    assert keys.check(bearer(key), "support") == "shop"
    keys.seconds += 0.2
    assert "expired" in keys.refusal(bearer(key)).body["error"]["message"]


def test_two_keys_of_an_app_overlap_and_share_its_limits(keys: GatewayKeys) -> None:
    limit = {"requests_per_second": 1.0, "burst": 3}
    first = keys.add(**limit)
    for _ in range(2):
        keys.check(bearer(first), "support")
    second = keys.add(**limit)
    assert keys.check(bearer(second), "support") == "shop"
    assert (keys.refusal(bearer(first)).status, keys.refusal(bearer(second)).status) == (429, 429)
    keys.write(keys.entries[1])
    keys.seconds += 1
    assert keys.refusal(bearer(first)).status == 401
    assert keys.check(bearer(second), "support") == "shop"


def test_a_rate_limit_allows_a_burst_and_then_its_rate(keys: GatewayKeys) -> None:
    key = keys.add(requests_per_second=2.0, burst=4)
    for _ in range(4):
        keys.check(bearer(key), "support")
    error = keys.refusal(bearer(key))
    assert (error.status, error.body["error"]["code"]) == (429, "rate_limit_exceeded")
    assert error.headers == {"retry-after": "1", "retry-after-ms": "500"}
    keys.seconds += 0.4
    assert keys.refusal(bearer(key)).headers["retry-after-ms"] == "100"
    keys.seconds += 0.1
    keys.check(bearer(key), "support")
    keys.seconds += 3_600
    for _ in range(4):
        keys.check(bearer(key), "support")
    assert keys.refusal(bearer(key)).status == 429


def test_apps_have_separate_limits(keys: GatewayKeys) -> None:
    greedy, modest = (keys.add(app, requests_per_second=1.0) for app in ("greedy", "modest"))
    keys.check(bearer(greedy), "support")
    assert keys.refusal(bearer(greedy)).status == 429
    assert keys.check(bearer(modest), "support") == "modest"


def test_bytes_are_limited_and_a_large_body_is_paid_back(keys: GatewayKeys) -> None:
    key = keys.add(bytes_per_minute=6_000)
    keys.check(bearer(key), "support", size=9_000)
    assert keys.refusal(bearer(key), size=100).headers["retry-after"] == "31"
    keys.seconds += 31
    assert keys.check(bearer(key), "support", size=100) == "shop"


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"keys": [{"app": "shop"}]}', b'{"version": 9, "keys": []}'])
def test_an_invalid_file_leaves_the_last_keys_valid_and_is_logged_once(
    keys: GatewayKeys, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    key = keys.add()
    caplog.clear()
    keys.file.write_bytes(broken)
    keys.access.reload()
    keys.access.reload()
    assert keys.check(bearer(key), "support") == "shop"
    assert "keys read last stay valid" in keys.access.notes()[0]
    assert keys.access.missing() == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    keys.write()
    assert keys.access.notes() == []
    assert keys.refusal(bearer(key)).status == 401


def test_a_file_with_an_unknown_restriction_is_refused(keys: GatewayKeys) -> None:
    key = keys.add()
    keys.file.write_bytes(keys.file.read_bytes().replace(b'"app"', b'"only_from": "10.0.0.0/8", "app"'))
    with pytest.raises(KeysUnreadable, match="only_from"):
        read_keys(keys.file)
    assert keys.check(bearer(key), "support") == "shop"


def test_an_invalid_file_at_the_start_refuses_every_request(tmp_path: Path) -> None:
    keys = GatewayKeys(tmp_path / "gateway" / "keys.json")
    keys.file.parent.mkdir()
    keys.file.write_text("{")
    keys.access.reload()
    assert keys.refusal([]).status == 503
    assert "not a file of API keys" in keys.access.missing()[0]
    key = keys.add()
    assert keys.check(bearer(key), "support") == "shop"
    assert keys.access.missing() == []


def test_a_file_that_vanishes_does_not_open_the_gateway(keys: GatewayKeys) -> None:
    key = keys.add()
    keys.file.unlink()
    keys.access.reload()
    assert keys.check(bearer(key), "support") == "shop"
    assert keys.refusal([]).status == 401
    assert "gone" in keys.access.notes()[0]


def _vanish(file: Path) -> None:
    file.unlink()


def _vanish_with_its_folder(file: Path) -> None:
    shutil.rmtree(file.parent)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("lose", [_vanish, _vanish_with_its_folder, _empty, _become_a_folder])
def test_a_gateway_that_restarts_after_its_keys_file_was_lost_refuses_every_request(
    keys: GatewayKeys, lose: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    key = keys.add()
    lose(keys.file)
    restarted = GatewayKeys(keys.file)
    for _ in range(2):
        restarted.access.reload()
        for headers in ([], bearer(key)):
            refused = restarted.refusal(headers)
            assert (refused.status, refused.body["error"]["code"]) == (503, "keys_unreadable")
    assert str(keys.file) in restarted.access.missing()[0]
    assert [record.getMessage().partition(".")[2] for record in caplog.records if record.levelno == logging.ERROR]


def test_a_lost_keys_file_that_is_restored_opens_the_gateway_to_its_keys_again(keys: GatewayKeys) -> None:
    key = keys.add()
    stored = keys.file.read_bytes()
    keys.file.unlink()
    restarted = GatewayKeys(keys.file)
    restarted.access.reload()
    keys.file.write_bytes(stored)
    restarted.access.reload()
    assert restarted.check(bearer(key), "support") == "shop"
    assert (restarted.access.missing(), restarted.refusal([]).status) == ([], 401)


def test_an_invalid_file_that_vanishes_does_not_open_the_gateway(keys: GatewayKeys) -> None:
    keys.file.parent.mkdir(exist_ok=True)
    keys.file.write_bytes(b"{")
    keys.access.reload()
    keys.file.unlink()
    keys.access.reload()
    assert keys.refusal([]).status == 503


def test_without_the_last_key_a_restarted_gateway_stays_closed(keys: GatewayKeys) -> None:
    key = keys.add()
    keys.write()
    restarted = GatewayKeys(keys.file)
    restarted.access.reload()
    assert [restarted.refusal(headers).status for headers in ([], bearer(key))] == [401, 401]


def test_a_setting_opens_a_gateway_that_has_had_keys(keys: GatewayKeys) -> None:
    keys.add()
    keys.file.unlink()
    opened = GatewayKeys(keys.file, required=False)
    opened.access.reload()
    assert opened.check([], "support") is None
    assert (opened.access.missing(), ["may use it" in note for note in opened.access.notes()]) == ([], [True])


def test_keys_are_valid_although_it_cannot_be_remembered_that_there_are_some(
    keys: GatewayKeys, caplog: pytest.LogCaptureFixture
) -> None:
    keys.access = AccessControl(keys.file, Path("/dev/null/had-keys"))
    key = keys.add()
    assert keys.check(bearer(key), "support") == "shop"
    assert any("cannot be written" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("host", "setting", "required"),
    [
        ("127.0.0.1", None, None), ("127.8.0.1", None, None), ("localhost", None, None), ("::1", None, None),
        ("0.0.0.0", None, True), ("::", None, True), ("", None, True), ("10.0.0.7", None, True),
        ("gateway.example", None, True), ("0.0.0.0", False, False), ("127.0.0.1", True, True),
    ],
)  # fmt: skip
def test_only_on_loopback_a_gateway_is_open_without_keys_unless_a_setting_opens_it(
    tmp_path: Path, host: str, setting: bool | None, required: bool | None
) -> None:
    settings = GatewaySettings(home=tmp_path, gateway_host=host, gateway_require_keys=setting)
    assert settings.keys_required is required


async def test_a_gateway_on_the_network_without_keys_logs_and_says_how_to_open_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = GatewaySettings(home=tmp_path, gateway_host="0.0.0.0")
    access = AccessControl(settings.keys_file, settings.had_keys_file, settings.keys_required)
    await access.start()
    with pytest.raises(HttpError, match=r"ratchet keys create APP.*RATCHET_GATEWAY_REQUIRE_KEYS=false") as refused:
        check(access, [], "support")
    assert refused.value.status == 401
    assert caplog.messages == access.notes()


def test_a_change_with_the_same_mtime_and_size_is_noticed(keys: GatewayKeys) -> None:
    first = keys.add()
    stat = keys.file.stat()
    second = GatewayKeys(keys.file).add()
    os.utime(keys.file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (keys.file.stat().st_size, keys.file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    keys.access.reload()
    assert keys.check(bearer(second), "support") == "shop"
    assert keys.refusal(bearer(first)).status == 401


async def test_a_new_key_works_without_a_restart(keys: GatewayKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "RELOAD_SECONDS", 0.01)
    await keys.access.start()
    watch = asyncio.create_task(keys.access.watch_forever())
    try:
        key = GatewayKeys(keys.file).add("late")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while keys.check(bearer(key), "support") != "late":
                await asyncio.sleep(0.01)
    finally:
        watch.cancel()


def test_the_file_has_no_key_in_it_and_only_its_owner_can_read_it(keys: GatewayKeys) -> None:
    key = keys.add()
    assert key.removeprefix("rk_") not in keys.file.read_text()
    assert keys.file.stat().st_mode & 0o777 == 0o600
    assert read_keys(keys.file) == tuple(keys.entries)
    assert len({new_key()[0] for _ in range(50)}) == 50
    assert len(key) >= 40


@pytest.mark.parametrize(
    ("origin", "origins", "refused"),
    [
        ("https://evil.example", (), True),
        ("null", (), True),
        ("https://localhost.evil.example", (), True),
        ("http://[", (), True),
        ("https://evil.example", ("https://app.example",), True),
        ("https://app.example", ("https://app.example",), False),
        ("https://app.example", ("*",), False),
        ("http://localhost:3000", (), False),
        ("http://127.0.0.1:8000", (), False),
        ("http://[::1]:8000", (), False),
    ],
)
def test_without_keys_pages_of_this_machine_and_of_named_origins_may_use_the_gateway(
    tmp_path: Path, origin: str, origins: tuple[str, ...], refused: bool
) -> None:
    access = AccessControl(tmp_path / "keys.json", tmp_path / "had-keys", origins=origins)
    access.reload()
    assert check(access, [(b"host", b"gateway")], "support") is None
    headers = [(b"origin", origin.encode())]
    if not refused:
        assert check(access, headers, "support") is None
        return
    with pytest.raises(HttpError, match="RATCHET_GATEWAY_CORS_ORIGINS") as error:
        check(access, headers, "support")
    assert (error.value.status, error.value.body["error"]["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    ("host", "refused"),
    [("10.0.0.5:8080", False), ("[fd00::5]:8080", False), ("evil.example:8080", True), ("10.0.0.5", True)],
)
def test_pages_of_a_gateway_without_keys_may_use_it_at_an_address(tmp_path: Path, host: str, refused: bool) -> None:
    access = AccessControl(tmp_path / "keys.json", tmp_path / "had-keys")
    access.reload()
    page = "evil.example:8080" if "evil" in host else host if not refused else "10.0.0.5:8080"
    headers = [(b"host", host.encode()), (b"origin", f"http://{page}".encode())]
    if refused:
        with pytest.raises(HttpError, match="web pages of"):
            check(access, headers, "support")
    else:
        assert check(access, headers, "support") is None


def test_with_a_key_the_origin_of_a_page_does_not_matter(keys: GatewayKeys) -> None:
    headers = [*bearer(keys.add()), (b"origin", b"https://evil.example")]
    assert keys.check(headers, "support") == "shop"
