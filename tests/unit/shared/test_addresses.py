from __future__ import annotations

import pytest

from shared.addresses import client_address, host_name, is_ip_address, is_loopback, without_credentials
from shared.errors import DependencyUnavailable
from shared.model.inference import InferenceClient


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("https://me:s3cret@api.example.com:8443/v1", "https://api.example.com:8443/v1"),
        ("https://me@api.example.com", "https://api.example.com"),
        ("https://s3cret:@[::1]:80/v1", "https://[::1]:80/v1"),
        ("https://api.example.com/v1?key=s3cret#s3cret", "https://api.example.com/v1"),
        ("postgresql://me:s3c@cret@db:5432/x?password=s3cret", "postgresql://db:5432/x"),
        ("http://me:s3/cret@host", "http://…"),
        ("http://me:s3?cret@host", "http://…"),
        ("http://me:s3#cret@host", "http://…"),
        ("http://[me:s3cret@host", "…"),
        ("me:s3cret@host:8000", "…"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_user_and_password_however_it_is_written(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("::ffff:10.0.0.1", False), ("10.0.0.1", False), ("", False),
        ("localhost.example.com", False), ("testclient", False),
    ],
)  # fmt: skip
def test_only_addresses_that_no_other_machine_reaches_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Example.com:28090", "example.com"), ("127.0.0.1:80", "127.0.0.1"), ("[::1]:28090", "::1"), ("[::1]", "::1"),
        ("", ""), ("[::1", ""), ("::1", ""), (":80", ""),
    ],
)  # fmt: skip
def test_the_name_of_a_host_header_is_without_its_port(host: str, name: str) -> None:
    assert host_name(host) == name


def test_a_name_is_no_ip_address() -> None:
    assert [is_ip_address(host) for host in ("10.0.0.1", "::1", "localhost", "10.0.0.1.example.com", "")] == [
        True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.5", "10.0.0.5:80"), ("desk.example", "desk.example:80"), ("fd00::5", "[fd00::5]:80"),
        ("0.0.0.0", "127.0.0.1:80"), ("", "127.0.0.1:80"), ("::", "localhost:80"),
    ],
)  # fmt: skip
def test_a_server_is_asked_where_it_listens_and_on_this_machine_where_it_listens_everywhere(
    host: str, address: str
) -> None:
    assert client_address(host, 80) == address


async def test_the_password_of_a_model_server_is_not_in_the_error_that_it_does_not_answer() -> None:
    client = InferenceClient(["http://me:s3cret@127.0.0.1:9"])
    with pytest.raises(DependencyUnavailable, match=r"^http://127\.0\.0\.1:9 does not answer") as failed:
        await client.models("http://me:s3cret@127.0.0.1:9")
    await client.close()
    assert "s3cret" not in failed.value.reason
