"""Settings of the stack read from the environment, and selection of parts by name."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.demo.settings import LoopSettings
from deploy.devstack import stack
from deploy.devstack.catalog import PARTS, select
from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.parts import models
from deploy.devstack.parts.kafka import KafkaPart
from deploy.devstack.parts.s3 import S3Part
from deploy.devstack.parts.services import ServicesPart
from deploy.devstack.ports import port_is_free
from services.gateway.routing.passed_models import PassedModels
from services.gateway.settings import GatewaySettings


def test_without_settings_no_part_is_external_and_all_files_are_in_the_home(tmp_path: Path) -> None:
    config = StackConfig.load(tmp_path, {})
    assert config.externals == {}
    assert config.tools == tmp_path / "tools"
    assert config.address("kafka") == "127.0.0.1:29092"
    assert config.base_model_name == "SmolLM2-135M-Instruct"


def test_servers_of_the_user_are_external(tmp_path: Path) -> None:
    env = {
        "RATCHET_KAFKA": "broker.example:9092",
        "RATCHET_POSTGRES": "postgresql://me:secret@db.example:5432/ratchet",
        "RATCHET_UNLEASH": "https://flags.example/",
        "RATCHET_VLLM": "http://gpu1:8000, http://gpu2:8000",
    }
    config = StackConfig.load(tmp_path, env)
    assert set(config.externals) == {"kafka", "postgres", "unleash", "vllm"}
    assert config.externals["unleash"] == "https://flags.example"


def test_the_stacks_own_exported_addresses_are_not_external(tmp_path: Path) -> None:
    env = {
        "RATCHET_KAFKA": "127.0.0.1:29092",
        "RATCHET_POSTGRES": "postgresql://ratchet:pw@127.0.0.1:25432/ratchet",
        "RATCHET_UNLEASH": "http://127.0.0.1:24242",
        "RATCHET_VLLM": "http://127.0.0.1:28000",
    }
    assert StackConfig.load(tmp_path, env).externals == {}


@pytest.mark.parametrize("password", ["s3/cret", "s3[cret", "s3#cret"])
@pytest.mark.parametrize("part", ["postgres", "kafka"])
def test_an_address_that_cannot_be_read_is_named_by_its_variable_without_its_password(
    tmp_path: Path, part: str, password: str
) -> None:
    variable = f"RATCHET_{part.upper()}"
    with pytest.raises(PartError) as error:
        StackConfig.load(tmp_path, {variable: f"postgresql://ratchet:{password}@db:5432/ratchet"})
    assert error.value.reason == f"{variable} is not an address"
    assert "%2F" in error.value.way_out
    assert not any(word in str(error.value) for word in ("s3", "cret", "db"))
    assert error.value.__cause__ is None


def test_a_password_may_have_a_comma(tmp_path: Path) -> None:
    url = "postgresql://ratchet:s3,c:x@db:5432/ratchet"
    assert StackConfig.load(tmp_path, {"RATCHET_POSTGRES": url}).externals == {"postgres": url}


def test_inner_ports_follow_the_port_that_clients_use(tmp_path: Path) -> None:
    ports = StackConfig.load(tmp_path, {"RATCHET_S3_PORT": "41000", "RATCHET_S3_MASTER_PORT": "42000"}).ports
    assert [ports[name] for name in S3Part.ports] == [41000, 41001, 41002, 41003, 42000, 41005, 41006, 41007]
    assert ports["kafka_internal"] == 29093
    assert StackConfig.load(tmp_path, {"RATCHET_KAFKA_PORT": "43000"}).ports["kafka_internal"] == 43001


def test_a_storage_that_does_not_exist_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    assert StackConfig.load(tmp_path, {"RATCHET_STORAGE": ""}).storage == "folder"
    assert StackConfig.load(tmp_path, {"RATCHET_STORAGE": "s3"}).storage == "s3"
    with pytest.raises(PartError, match="RATCHET_STORAGE='tape' is neither folder nor s3"):
        StackConfig.load(tmp_path, {"RATCHET_STORAGE": "tape"})


def test_a_port_that_is_taken_is_named_before_anything_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[str] = []
    monkeypatch.setattr(ServicesPart, "install", lambda self, config, say: installed.append(self.name))
    monkeypatch.setattr(ServicesPart, "needs", lambda self, config: ("kafka",))
    monkeypatch.setattr(KafkaPart, "probe", lambda self, config: "it does not run")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(stack.StackError, match=f"address already in use: port {port}") as error:
            stack.up(["services"], tmp_path, env={**stack.free_ports(), "RATCHET_CONSOLE_PORT": str(port)})
    assert installed == []
    assert "RATCHET_CONSOLE_PORT" in error.value.way_out and "RATCHET_HOME" in error.value.way_out


def test_a_service_with_a_host_of_its_own_is_probed_shown_and_asked_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.2", 0), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {"RATCHET_CONSOLE_HOST": "127.0.0.2", "RATCHET_CONSOLE_PORT": str(server.server_port)}
    config, console = StackConfig.load(tmp_path, env), ServicesPart()
    monkeypatch.setattr(console, "ports", ("console",))
    try:
        assert console.probe(config) is None
        assert not port_is_free(server.server_port, config.host("console"))
    finally:
        server.shutdown()
        server.server_close()
    url = f"http://127.0.0.2:{server.server_port}"
    assert console.address(config) == f"{url}/"
    assert console.environment(config) == env
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert LoopSettings.load(home=tmp_path).console_url == url


def test_a_service_that_listens_everywhere_is_asked_on_this_machine(tmp_path: Path) -> None:
    config = StackConfig.load(tmp_path, {"RATCHET_GATEWAY_HOST": "0.0.0.0", "RATCHET_GATEWAY_PORT": "41000"})
    services = ServicesPart()
    assert "http://127.0.0.1:41000/v1" in services.address(config).splitlines()
    assert services.environment(config)["RATCHET_GATEWAY_PORT"] == "41000"
    assert "RATCHET_GATEWAY_HOST" not in services.environment(config)


def test_a_host_that_this_machine_does_not_have_is_an_error_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ServicesPart, "needs", lambda self, config: ())
    with pytest.raises(stack.StackError, match=r"nothing can listen at RATCHET_CONSOLE_HOST=192\.0\.2\.1") as error:
        stack.up(["services"], tmp_path, env={**stack.free_ports(), "RATCHET_CONSOLE_HOST": "192.0.2.1"})
    assert "0.0.0.0" in error.value.way_out


@pytest.mark.parametrize("text", ["0", "65536", "http", "-1"])
def test_an_invalid_port_is_refused_with_its_variable(tmp_path: Path, text: str) -> None:
    with pytest.raises(PartError, match="RATCHET_VLLM_PORT"):
        StackConfig.load(tmp_path, {"RATCHET_VLLM_PORT": text})


def test_a_kafka_home_without_jars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PartError, match="KAFKA_HOME"):
        StackConfig.load(tmp_path, {"KAFKA_HOME": str(tmp_path)})


def test_a_hub_id_and_a_folder_have_the_same_short_name(tmp_path: Path) -> None:
    for model in ("meta-llama/Llama-3.1-8B-Instruct", "/models/Llama-3.1-8B-Instruct/"):
        config = StackConfig.load(tmp_path, {"RATCHET_BASE_MODEL": model})
        assert config.base_model_name == "Llama-3.1-8B-Instruct"


def names(env: dict[str, str], parts: Sequence[str] | None = None) -> list[str]:
    """Return the names of the parts that are selected in a home of these settings."""
    return [part.name for part in select(StackConfig.load(Path("/nowhere"), env), parts)]


@pytest.fixture
def apache_kafka(tmp_path: Path) -> dict[str, str]:
    """Settings by which the broker is Apache Kafka."""
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka.jar").touch()
    return {"KAFKA_HOME": str(tmp_path)}


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PartError, match="kafak") as error:
        names({}, ["kafak"])
    assert "kafka" in error.value.way_out


def test_whole_models_are_served_by_the_stack_unless_vllm_is_the_users_own() -> None:
    external = {"RATCHET_VLLM": "http://gpu1:8000"}
    assert "models" in names({})
    assert "models" not in names(external)
    assert "models" in names({**external, "RATCHET_MODELS": "http://gpu1:8001"})
    assert models.ModelsPart().environment(StackConfig.load(Path("/nowhere"), external)) == {}


def test_the_gateway_passes_published_names_on_unless_it_passes_models_to_another_api(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = StackConfig.load(Path("/nowhere"), {})
    environment = models.ModelsPart().environment(config)
    assert environment["RATCHET_MODELS"] == "http://127.0.0.1:28001"
    gateway = GatewaySettings(**{name.removeprefix("RATCHET_").lower(): value for name, value in environment.items()})
    assert gateway.gateway_pass_url == "http://127.0.0.1:28001/v1"
    passed = PassedModels(gateway.pass_models)
    assert "support-4f2a90c1" in passed and "support" not in passed
    monkeypatch.setenv("RATCHET_GATEWAY_PASS_URL", "https://api.openai.com/v1")
    assert models.ModelsPart().environment(config) == {"RATCHET_MODELS": "http://127.0.0.1:28001"}


def test_tansu_brings_the_s3_server_that_it_is_kept_in(apache_kafka: dict[str, str]) -> None:
    assert names({}, ["kafka", "postgres"]) == ["s3", "kafka", "postgres"]
    assert names({}, ["postgres"]) == ["postgres"]
    for env in (apache_kafka, {"RATCHET_KAFKA": "broker.example:9092"}):
        assert names(env, ["kafka"]) == ["kafka"]
        assert names(env) == [name for name in PARTS if name != "s3"]


def test_the_s3_server_starts_where_the_lake_is_in_it(apache_kafka: dict[str, str]) -> None:
    assert names({**apache_kafka, "RATCHET_STORAGE": "s3"}) == list(PARTS)


def test_free_ports_differ_from_each_other() -> None:
    assert len(set(stack.free_ports().values())) == len(stack.free_ports())
