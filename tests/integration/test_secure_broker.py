"""A broker secured like a managed Kafka: TLS, users with passwords, client certificates, on listeners of its own.

Certificates are made for this run. tansu has neither TLS nor users, so this needs Apache Kafka: KAFKA_HOME.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import TopicPartition
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion
from pydantic import SecretStr

from deploy.devstack.config import StackConfig
from deploy.devstack.parts.kafka import LOGGING, KafkaPart, format_storage, render_properties
from deploy.devstack.ports import take_ports
from schemas.predictions import FeedbackGiven
from services.scheduler.clients import KafkaFenceReader
from shared.errors import ConfigurationError, DependencyUnavailable, InvalidMessage
from shared.kafka.broker import build_broker
from shared.kafka.clients import build_producer, client_options, connect_admin, end_offsets
from shared.kafka.consumers import Consumers
from shared.kafka.dead_letters import read_dead_letters, replay_dead_letters
from shared.kafka.publisher import Publisher
from shared.kafka.topics import create_topics
from shared.settings import Settings
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(
        not os.environ.get("KAFKA_HOME"), reason="needs Apache Kafka: tansu has no TLS and no users (set KAFKA_HOME)"
    ),
]
ROOT = Path(__file__).parents[2]
USER, PASSWORD = "ratchet", "of the test"
LISTENERS = """
listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},SASL_SSL://127.0.0.1:{sasl},SSL://127.0.0.1:{mtls}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{sasl},SSL://127.0.0.1:{mtls}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
listener.name.ssl.ssl.client.auth=required
"""


class Authority:
    """A certificate authority, like a company's own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> Path:
        """A PEM file with key and certificate for 127.0.0.1, to serve or to call."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(
            subject,
            key,
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        )
        pem = serialization.Encoding.PEM
        plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path = self._folder / f"{name}.pem"
        path.write_bytes(plain + certificate.public_bytes(pem) + self.certificate.public_bytes(pem))
        return path

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self._key, hashes.SHA256())


@dataclass(frozen=True)
class Secured:
    """The running broker, and credentials it accepts or refuses."""

    home: Path
    sasl: str
    mtls: str
    plain: str
    ca: Path
    untrusted_ca: Path
    client: Path

    def settings(self, **changes: object) -> Settings:
        known: dict[str, object] = {
            "home": self.home,
            "kafka": self.sasl,
            "kafka_security": "SASL_SSL",
            "kafka_username": USER,
            "kafka_password": SecretStr(PASSWORD),
            "kafka_ca_file": self.ca,
        }
        return Settings(**{**known, **changes})

    def with_certificate(self) -> Settings:
        return Settings(
            home=self.home,
            kafka=self.mtls,
            kafka_security="SSL",
            kafka_ca_file=self.ca,
            kafka_client_certificate=self.client,
        )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    home = tmp_path_factory.mktemp("secured")
    ours, strange = Authority(home, "ca"), Authority(home, "strange")
    ours.issue("broker")
    plain, controller, sasl, mtls = take_ports(4)
    config = StackConfig.load(
        home,
        {
            "KAFKA_HOME": os.environ["KAFKA_HOME"],
            "PATH": os.environ["PATH"],
            "RATCHET_TOOLS": os.environ.get("RATCHET_TOOLS", str(ROOT / ".ratchet" / "tools")),
            "RATCHET_KAFKA_PORT": str(plain),
            "RATCHET_KAFKA_INTERNAL_PORT": str(controller),
        },
    )
    secure = LISTENERS.format(
        plain=plain, controller=controller, sasl=sasl, mtls=mtls, folder=home, user=USER, password=PASSWORD
    )
    replaced = ("listeners=", "advertised.listeners=")
    given = [one for one in render_properties(config, home / "data").splitlines() if not one.startswith(replaced)]
    properties, logging = home / "server.properties", home / "log4j2.yaml"
    properties.write_text("\n".join(given) + secure)
    logging.write_text(LOGGING)
    java, classpath = "java", f"{os.environ['KAFKA_HOME']}/libs/*"
    format_storage(java, classpath, properties)
    options = (
        "-Xmx384m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        f"-Dlog4j2.configurationFile={logging.as_uri()}",
    )
    with (home / "kafka.log").open("wb") as log:
        argv = (java, *options, "-cp", classpath, "kafka.Kafka", str(properties))
        broker = subprocess.Popen(argv, stdout=log, stderr=log, cwd=home)
    try:
        found = Secured(
            home, f"127.0.0.1:{sasl}", f"127.0.0.1:{mtls}", f"127.0.0.1:{plain}",
            ours.file, strange.file, ours.issue("client"),
        )  # fmt: skip
        _add_user(Settings(home=home, kafka=found.plain))
        yield found
    finally:
        broker.terminate()
        broker.wait(PATIENCE_SECONDS)


def _add_user(settings: Settings) -> None:
    admin = connect_admin(settings, "test", wait_seconds=60.0)
    try:
        admin.alter_user_scram_credentials(
            [UserScramCredentialUpsertion(USER, ScramMechanism.SCRAM_SHA_512, PASSWORD, iterations=4096)]
        )
    finally:
        admin.close()


async def _there_and_back(settings: Settings) -> None:
    """Create topics, publish, consume, dead-letter and replay: with every kind of client."""
    create_topics(settings)
    mark, broken, seen = uuid4().hex, True, []

    async def handler(event: FeedbackGiven) -> None:
        if broken:
            raise InvalidMessage("not today")
        seen.append(event.prediction_id)

    broker = build_broker(settings, "prediction_log")
    Consumers(broker, "prediction_log", settings).on(FeedbackGiven, handler)
    await broker.start()
    try:
        event = FeedbackGiven(task="t", task_revision="r", prediction_id=mark, kind="thumbs", positive=True)
        await Publisher(broker, "gateway").publish(event)
        await until(lambda: read_dead_letters(settings, "prediction_log"))
        broken = False
        assert await replay_dead_letters(settings, "prediction_log") == (1, 0)
        await until(lambda: mark in seen)
    finally:
        await broker.stop()


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
async def test_everything_works_with_tls_and_a_password(secured: Secured, mechanism: str) -> None:
    await _there_and_back(secured.settings(kafka_sasl_mechanism=mechanism))


async def test_everything_works_with_a_client_certificate(secured: Secured) -> None:
    await _there_and_back(secured.with_certificate())


async def test_a_cycles_fence_is_read_with_tls_and_a_password(secured: Secured) -> None:
    create_topics(secured.settings())
    assert len(await KafkaFenceReader(secured.settings(), ["feedback.given.v1"]).fence()) == 4


def test_the_local_stack_takes_a_managed_broker(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StackConfig.load(secured.home, {"RATCHET_KAFKA": secured.sasl})
    for name, value in {
        "RATCHET_KAFKA_SECURITY": "SASL_SSL",
        "RATCHET_KAFKA_USERNAME": USER,
        "RATCHET_KAFKA_PASSWORD": PASSWORD,
        "RATCHET_KAFKA_CA_FILE": str(secured.ca),
    }.items():
        monkeypatch.setenv(name, value)
    assert probed(config) is None
    monkeypatch.setenv("RATCHET_KAFKA_PASSWORD", "guessed")
    assert "refuses the user" in str(probed(config))


def probed(config: StackConfig) -> str | None:
    """What the probe says once the broker answers in time: on a busy machine a handshake may take longer than it waits.

    `ratchet up` asks again in the same way.
    """
    for _ in range(10):
        reason = KafkaPart().probe(config)
        if "Timeout" not in str(reason):
            break
    return reason


async def test_every_client_reports_a_wrong_password(secured: Secured) -> None:
    settings = secured.settings(kafka_password=SecretStr("guessed"))
    for refused in await _refusals(settings):
        assert isinstance(refused, ConfigurationError)
        assert f"refuses the user '{USER}'" in refused.reason
        assert "RATCHET_KAFKA_PASSWORD" in refused.way_out


async def test_every_client_refuses_a_broker_with_an_untrusted_certificate(secured: Secured) -> None:
    for refused in await _refusals(secured.settings(kafka_ca_file=secured.untrusted_ca)):
        assert isinstance(refused, ConfigurationError)
        assert "is not trusted" in refused.reason
        assert "RATCHET_KAFKA_CA_FILE" in refused.way_out


async def test_a_broker_whose_name_is_not_in_its_certificate_is_refused(secured: Secured) -> None:
    settings = secured.settings(kafka=secured.sasl.replace("127.0.0.1", "localhost"))
    for refused in await _refusals(settings):
        assert isinstance(refused, ConfigurationError)
        assert "is not trusted" in refused.reason


async def test_a_missing_client_certificate_is_suggested(secured: Secured) -> None:
    settings = secured.with_certificate().model_copy(update={"kafka_client_certificate": None})
    for refused in await _refusals(settings):
        assert "RATCHET_KAFKA_CLIENT_CERTIFICATE" in refused.way_out


async def test_plaintext_to_a_secured_port_is_reported(secured: Secured) -> None:
    for refused in await _refusals(Settings(home=secured.home, kafka=secured.sasl)):
        assert isinstance(refused, DependencyUnavailable)
        assert "RATCHET_KAFKA_SECURITY" in refused.way_out


async def _refusals(settings: Settings) -> list[ConfigurationError | DependencyUnavailable]:
    """The errors of kafka-python's admin, FastStream and aiokafka's consumer, as `diagnose` reports them."""
    found = []
    with pytest.raises((ConfigurationError, DependencyUnavailable)) as admin:
        create_topics(settings, wait_seconds=0.0)
    found.append(admin.value)
    broker = build_broker(settings, "prediction_log")
    with pytest.raises((ConfigurationError, DependencyUnavailable)) as stream:
        await broker.start()
    await broker.stop()
    found.append(stream.value)
    with pytest.raises((ConfigurationError, DependencyUnavailable)) as consumer:
        await end_offsets(settings, [TopicPartition("feedback.given.v1", 0)])
    found.append(consumer.value)
    return found


async def test_the_producer_is_idempotent_compresses_and_waits_for_all_replicas(secured: Secured) -> None:
    settings = secured.settings()
    create_topics(settings)
    producer = build_producer(settings, "test")
    await producer.start()
    try:
        value = b"a" * 900_000
        record = await producer.send_and_wait("feedback.given.v1", value, partition=0)
        assert record.offset >= 0
    finally:
        await producer.stop()
    folder = secured.home / "data" / "feedback.given.v1-0"
    batch = b"".join(path.read_bytes() for path in folder.glob("*.log"))
    assert len(batch) < 100_000, "900 kB are stored compressed"
    options = client_options(settings)
    assert options["security_protocol"] == "SASL_SSL"
