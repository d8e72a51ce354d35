"""Settings of the stack read from the environment, and selection of parts by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.devstack import stack
from deploy.devstack.catalog import select, with_split_services
from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError
from schemas.catalog import SERVICES


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


def test_the_controller_port_follows_a_changed_broker_port(tmp_path: Path) -> None:
    config = StackConfig.load(tmp_path, {"RATCHET_KAFKA_PORT": "41000"})
    assert config.ports["kafka_controller"] == 41001


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


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PartError, match="kafak") as error:
        select(["kafak"])
    assert "kafka" in error.value.way_out


def test_with_split_each_service_is_a_part() -> None:
    names = [part.name for part in select(split=True, without=["vllm", "shadow"])]
    assert set(names) == {"kafka", "postgres", "unleash", *SERVICES} - {"shadow"}


def test_stopping_services_includes_split_ones() -> None:
    assert with_split_services(["services"]) == {"services", *SERVICES}


def test_free_ports_differ_from_each_other() -> None:
    assert len(set(stack.free_ports().values())) == len(stack.free_ports())
