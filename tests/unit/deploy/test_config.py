"""Where everything is: what the environment says, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.devstack import stack
from deploy.devstack.catalog import select, with_split_services
from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError
from schemas.catalog import SERVICES


def test_without_settings_everything_is_ours_and_in_the_home(tmp_path: Path) -> None:
    config = StackConfig.load(tmp_path, {})
    assert config.externals == {}
    assert config.tools == tmp_path / "tools"
    assert config.address("kafka") == "127.0.0.1:29092"
    assert config.base_model_name == "SmolLM2-135M-Instruct"


def test_the_users_own_parts_are_external(tmp_path: Path) -> None:
    env = {
        "RATCHET_KAFKA": "broker.example:9092",
        "RATCHET_POSTGRES": "postgresql://me:secret@db.example:5432/ratchet",
        "RATCHET_UNLEASH": "https://flags.example/",
        "RATCHET_VLLM": "http://gpu1:8000, http://gpu2:8000",
    }
    config = StackConfig.load(tmp_path, env)
    assert set(config.externals) == {"kafka", "postgres", "unleash", "vllm"}
    assert config.externals["unleash"] == "https://flags.example"


def test_our_own_exported_addresses_do_not_make_a_part_external(tmp_path: Path) -> None:
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
def test_a_port_that_is_none_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(PartError, match="RATCHET_VLLM_PORT"):
        StackConfig.load(tmp_path, {"RATCHET_VLLM_PORT": text})


def test_a_kafka_home_without_jars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PartError, match="KAFKA_HOME"):
        StackConfig.load(tmp_path, {"KAFKA_HOME": str(tmp_path)})


def test_a_hub_id_and_a_folder_have_the_same_short_name(tmp_path: Path) -> None:
    for model in ("meta-llama/Llama-3.1-8B-Instruct", "/models/Llama-3.1-8B-Instruct/"):
        config = StackConfig.load(tmp_path, {"RATCHET_BASE_MODEL": model})
        assert config.base_model_name == "Llama-3.1-8B-Instruct"


def test_an_unknown_part_is_named_with_those_there_are() -> None:
    with pytest.raises(PartError, match="kafak") as error:
        select(["kafak"])
    assert "kafka" in error.value.way_out


def test_split_makes_each_service_a_part() -> None:
    names = [part.name for part in select(split=True, without=["vllm", "shadow"])]
    assert set(names) == {"kafka", "postgres", "unleash", *SERVICES} - {"shadow"}


def test_stopping_services_stops_them_in_either_shape() -> None:
    assert with_split_services(["services"]) == {"services", *SERVICES}


def test_the_services_are_those_of_the_contract() -> None:
    from schemas.catalog import SERVICES as CONTRACT

    assert set(SERVICES) == set(CONTRACT)


def test_free_ports_differ_from_each_other() -> None:
    assert len(set(stack.free_ports().values())) == len(stack.free_ports())
