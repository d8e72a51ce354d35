"""The options that Kafka clients get from `Settings`, and that every client uses them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.errors import ConfigurationError
from shared.kafka import diagnostics
from shared.kafka.clients import broker_options, client_options, producer_options
from shared.settings import Settings

ROOT = Path(__file__).parents[3]
PASSWORD = SecretStr("secret")


def test_without_security_a_client_needs_the_servers_only() -> None:
    assert client_options(Settings(kafka=" a:1, b:2 ")) == {
        "bootstrap_servers": ["a:1", "b:2"],
        "security_protocol": "PLAINTEXT",
    }


def test_a_password_is_given_to_the_client_and_not_shown_with_the_settings() -> None:
    settings = Settings(kafka_security="SASL_SSL", kafka_username="ratchet", kafka_password=PASSWORD)
    options = client_options(settings)
    assert (options["sasl_mechanism"], options["sasl_plain_username"]) == ("SCRAM-SHA-512", "ratchet")
    assert options["sasl_plain_password"] == "secret"
    assert options["ssl_context"].verify_mode.name == "CERT_REQUIRED"
    assert options["ssl_context"].check_hostname
    assert "secret" not in repr(settings)


def test_producers_wait_for_all_replicas_and_are_idempotent_where_the_broker_supports_it() -> None:
    assert producer_options(Settings())["acks"] == "all"
    assert producer_options(Settings())["enable_idempotence"]
    assert not producer_options(Settings(kafka_idempotence=False))["enable_idempotence"]
    assert broker_options(Settings()).items() >= producer_options(Settings()).items()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (Settings(kafka=" , "), "RATCHET_KAFKA=host:port"),
        (Settings(kafka="one:9092, two:"), "RATCHET_KAFKA=host:port"),
        (Settings(kafka_security="SASL_SSL"), "RATCHET_KAFKA_USERNAME and RATCHET_KAFKA_PASSWORD"),
        (Settings(kafka_security="SASL_SSL", kafka_username="ratchet"), "RATCHET_KAFKA_PASSWORD"),
        (Settings(kafka_security="SSL", kafka_password=PASSWORD), "RATCHET_KAFKA_SECURITY=SASL_SSL"),
        (Settings(kafka_ca_file=Path("ca.pem")), "RATCHET_KAFKA_SECURITY=SSL"),
        (Settings(kafka_security="SSL", kafka_ca_file=Path("/nowhere.pem")), "RATCHET_KAFKA_CA_FILE"),
        (Settings(kafka_security="SSL", kafka_client_certificate=Path(__file__)), "RATCHET_KAFKA_CLIENT_CERTIFICATE"),
    ],
    ids=[
        "no server", "no address", "no user", "no password", "unused password", "unused file", "missing file",
        "no certificate",
    ],
)  # fmt: skip
def test_contradictory_settings_name_the_variable_to_set(settings: Settings, advice: str) -> None:
    for options in (client_options, broker_options):
        with pytest.raises(ConfigurationError) as refused:
            options(settings)
        assert advice in refused.value.way_out


@pytest.mark.parametrize(
    ("server", "place"), [("broker:1", ("broker", 1)), ("broker", ("broker", 9092)), ("[::1]:2", ("::1", 2))]
)
async def test_a_broker_is_looked_for_where_clients_connect_to(
    server: str, place: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a port that is 9092, and brackets are not of an IPv6 address."""
    tried = []

    async def connect(host: str, port: int, **_: object) -> None:
        tried.append((host, port))
        raise OSError("nobody is there")

    monkeypatch.setattr(diagnostics, "create_conn", connect)
    error = await diagnostics.diagnose(client_options(Settings(kafka=server)), OSError())
    assert tried == [place] and server in str(error)


def test_every_kafka_client_uses_these_options() -> None:
    clients = {"AIOKafkaConsumer", "AIOKafkaProducer", "KafkaAdminClient", "KafkaBroker", "Broker"}
    found = {
        f"{path.relative_to(ROOT)}: {ast.unparse(call)}"
        for folder in ("shared", "services", "deploy")
        for path in (ROOT / folder).rglob("*.py")
        if any(f"{client}(" in path.read_text() for client in clients)
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in clients
    }
    assert len(found) >= 5
    assert [call for call in found if "_options(" not in call and "**connection" not in call] == []
