"""The configuration that each part writes, and the process that it starts."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.devstack import stack
from deploy.devstack.config import StackConfig
from deploy.devstack.credentials import Credentials
from deploy.devstack.errors import PartError
from deploy.devstack.install.packages import VERSION_FILE, install_once, is_installed
from deploy.devstack.model_server import __main__ as model_server
from deploy.devstack.part import StackPart, tail
from deploy.devstack.parts import kafka, models, postgres, unleash, vllm
from shared.errors import ConfigurationError, DependencyUnavailable


def test_kafkas_properties_hold_the_ports_and_the_data_folder(tmp_path: Path) -> None:
    config = StackConfig.load(tmp_path, {"RATCHET_KAFKA_PORT": "41000"})
    lines = kafka.render_properties(config, tmp_path / "data").splitlines()
    assert "advertised.listeners=PLAINTEXT://127.0.0.1:41000" in lines
    assert "controller.quorum.voters=1@127.0.0.1:41001" in lines
    assert f"log.dirs={tmp_path / 'data'}" in lines
    assert "auto.create.topics.enable=false" in lines


def test_without_kafka_home_the_broker_is_tansu_which_needs_the_s3_server(tmp_path: Path) -> None:
    part, config = kafka.KafkaPart(), StackConfig.load(tmp_path, stack.free_ports())
    assert part.needs(config) == ("s3",)
    assert part.environment(config)["RATCHET_KAFKA_IDEMPOTENCE"] == "false"


def test_a_home_whose_broker_was_apache_kafka_is_not_continued_with_tansu(tmp_path: Path) -> None:
    (tmp_path / "data" / "kafka").mkdir(parents=True)
    with pytest.raises(PartError, match="KAFKA_HOME is not set") as error:
        stack.up(["kafka"], tmp_path, env=stack.free_ports())
    assert f"rm -r {tmp_path / 'data' / 'kafka'}" in error.value.way_out
    assert not (tmp_path / "stack.env").exists(), "no other broker has begun in its place"


def test_credentials_are_created_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    first = Credentials.load(tmp_path)
    assert Credentials.load(tmp_path) == first
    assert stat.S_IMODE((tmp_path / "secrets" / "stack.json").stat().st_mode) == 0o600


def test_a_damaged_file_of_credentials_is_an_error_with_its_path_and_stays(tmp_path: Path) -> None:
    Credentials.load(tmp_path)
    path = tmp_path / "secrets" / "stack.json"
    path.write_text("{")
    with pytest.raises(ConfigurationError, match="is not JSON") as refused:
        Credentials.load(tmp_path)
    assert "Restore" in refused.value.way_out
    assert path.read_text() == "{"


@pytest.mark.parametrize("external", [{}, {"RATCHET_KAFKA": "broker:9092"}])
def test_a_setting_of_the_broker_that_cannot_be_used_is_named_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: dict[str, str]
) -> None:
    monkeypatch.setenv("RATCHET_KAFKA_SECURITY", "TLS")
    with pytest.raises(ConfigurationError, match="RATCHET_KAFKA_SECURITY: "):
        kafka.KafkaPart().probe(StackConfig.load(tmp_path, external))


def test_a_whole_model_is_served_by_a_vllm_of_its_own_under_its_name_without_adapters_and_on_one_core(
    tmp_path: Path,
) -> None:
    config = StackConfig.load(tmp_path, {})
    with pytest.raises(DependencyUnavailable, match="vLLM is not installed"):
        model_server.launch(config, "desk-4f2a", tmp_path / "m", 4000)
    (config.tools / "vllm").mkdir(parents=True)
    (config.tools / "vllm" / VERSION_FILE).write_text(vllm.requirement())
    launch = model_server.launch(config, "desk-4f2a", tmp_path / "m", 4000)
    words = " ".join(launch.argv)
    assert f"--model {tmp_path / 'm'} --served-model-name desk-4f2a --host 127.0.0.1 --port 4000" in words
    assert "lora" not in words
    assert (launch.env["OMP_NUM_THREADS"], launch.env["VLLM_CPU_OMP_THREADS_BIND"]) == ("1", "nobind")
    assert Path(launch.env["VLLM_LORA_RESOLVER_CACHE_DIR"]).is_dir(), "else vLLM does not start"


@pytest.mark.parametrize("part", [postgres.PostgresPart(), unleash.UnleashPart(), vllm.VllmPart(), models.ModelsPart()])
def test_an_external_servers_address_is_shown_without_its_password_and_handed_on_with_it(
    tmp_path: Path, part: StackPart
) -> None:
    name, url = f"RATCHET_{part.name.upper()}", "http://me:s3cret@127.0.0.1:9/x"
    tokens = {"RATCHET_UNLEASH_CLIENT_TOKEN": "t", "RATCHET_UNLEASH_ADMIN_TOKEN": "t"}
    config = StackConfig.load(tmp_path, {name: url, **tokens})
    assert part.address(config) == "http://127.0.0.1:9/x"
    assert part.environment(config)[name] == url
    assert "s3cret" not in (part.probe(config) or "")


def test_a_malformed_password_is_not_in_the_error_of_its_address() -> None:
    assert "s3%cret" not in (postgres.probe_database("postgresql://me:s3%cret@127.0.0.1:9/x") or "s3%cret")


def test_the_address_of_another_database_differs_in_its_name_only(tmp_path: Path) -> None:
    config = StackConfig.load(tmp_path, {"RATCHET_POSTGRES": "postgresql://me:pw@db:5432/ratchet?sslmode=require"})
    assert postgres.database_url(config, "unleash") == "postgresql://me:pw@db:5432/unleash?sslmode=require"


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[set[Path]]:
    """Run PostgreSQL as root does, with a stand-in for `initdb`. Yields the folders that nobody else can enter."""
    closed: set[Path] = set()

    def create(programs: Path, data: Path, password: str) -> None:
        data.mkdir(parents=True)
        (data / "PG_VERSION").write_text("15\n")

    monkeypatch.setattr(postgres, "PUBLIC_FOLDERS", tmp_path / "public")
    monkeypatch.setattr(postgres, "server_user", lambda: "nobody")
    monkeypatch.setattr(postgres, "reachable_by_all_users", lambda folder: not {folder, *folder.parents} & closed)
    monkeypatch.setattr(postgres, "initialise_cluster", create)
    yield closed


def test_roots_database_is_where_nothing_deletes_files_by_their_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "server_user", lambda: "nobody")
    monkeypatch.setattr(postgres, "reachable_by_all_users", lambda folder: False)
    assert postgres.data_folder(StackConfig.load(tmp_path, {})).parents[1] == Path("/var/lib")


def test_a_cluster_is_looked_for_where_it_was_created_whatever_became_of_the_folders_above(
    tmp_path: Path, root: set[Path]
) -> None:
    inside, outside = (StackConfig.load(tmp_path / name, {}) for name in ("inside", "outside"))
    root.add(outside.home)
    for config in (inside, outside):
        postgres.ensure_cluster(config, tmp_path)
    created = postgres.data_folder(outside)
    assert created.is_relative_to(tmp_path / "public")
    root.clear()
    postgres.ensure_cluster(outside, tmp_path)
    assert postgres.data_folder(outside) == created
    moved = StackConfig.load(inside.home.rename(tmp_path / "moved"), {})
    postgres.ensure_cluster(moved, tmp_path)
    assert postgres.data_folder(moved) == moved.home / "data" / "postgres"


@pytest.mark.usefixtures("root")
def test_a_recorded_cluster_that_is_missing_is_an_error_and_no_empty_one_takes_its_place(tmp_path: Path) -> None:
    config = StackConfig.load(tmp_path, {})
    postgres.ensure_cluster(config, tmp_path)
    data = postgres.data_folder(config)
    data.rename(tmp_path / "away")
    with pytest.raises(PartError, match="is missing") as error:
        postgres.ensure_cluster(config, tmp_path)
    assert not data.exists()
    assert f"rm -rf {data} {postgres.data_folder_record(config)}" in error.value.way_out


def test_a_home_that_has_lost_the_record_of_its_database_knows_it_again(tmp_path: Path, root: set[Path]) -> None:
    """As after a kill between its creation and the record."""
    config = StackConfig.load(tmp_path / "home", {})
    root.add(config.home)
    postgres.ensure_cluster(config, tmp_path)
    created = postgres.data_folder(config)
    postgres.data_folder_record(config).unlink()
    postgres.ensure_cluster(config, tmp_path)
    assert postgres.data_folder_record(config).read_text() == str(created)


def test_the_database_of_a_deleted_home_is_not_taken_for_the_new_homes(tmp_path: Path, root: set[Path]) -> None:
    config = StackConfig.load(tmp_path / "home", {})
    root.add(config.home)
    postgres.ensure_cluster(config, tmp_path)
    created = postgres.data_folder(config)
    shutil.rmtree(config.home)
    postgres.ensure_cluster(config, tmp_path)
    assert postgres.data_folder(config) != created


def test_where_postgres_cannot_enter_the_environment_it_runs_from_a_copy(root: set[Path]) -> None:
    installed = postgres.find_programs()
    root.add(installed)
    postgres.PUBLIC_FOLDERS.mkdir()
    root.add(installed.parent)
    copy = postgres.find_programs()
    assert copy.is_relative_to(postgres.PUBLIC_FOLDERS)
    assert postgres.find_programs() == copy
    assert (copy / "initdb").stat().st_mode & 0o001


def test_an_external_unleash_needs_its_tokens(tmp_path: Path) -> None:
    config = StackConfig.load(tmp_path, {"RATCHET_UNLEASH": "https://flags.example"})
    with pytest.raises(PartError) as error:
        unleash.tokens(config)
    assert "RATCHET_UNLEASH_CLIENT_TOKEN" in error.value.way_out


def test_vllm_runs_where_the_models_name_is_its_path(tmp_path: Path) -> None:
    config = StackConfig.load(tmp_path, {})
    launch = vllm.VllmPart().launch(config)
    assert launch.cwd == str(config.models)
    argv = list(launch.argv)
    assert argv[argv.index("--model") + 1] == argv[argv.index("--served-model-name") + 1] == config.base_model_name
    assert launch.env["VLLM_LORA_RESOLVER_CACHE_DIR"] == str(config.adapters)
    assert "lora_filesystem_resolver" in launch.env["VLLM_PLUGINS"]


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_vllm_does_not_emulate_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: str
) -> None:
    monkeypatch.setattr(vllm, "has_gpu", lambda: False)
    monkeypatch.setattr(vllm, "has_bfloat16", lambda: fast)
    assert f"--dtype={dtype}" in vllm.VllmPart().launch(StackConfig.load(tmp_path, {})).argv


def test_the_plugin_for_the_cpu_is_found_by_its_entry_point() -> None:
    from importlib.metadata import distributions

    points = [point for found in distributions(path=[str(vllm.PLUGIN_FOLDER)]) for point in found.entry_points]
    assert [(point.group, point.value) for point in points] == [("vllm.general_plugins", "ratchet_cpu:register")]


def test_an_interrupted_install_is_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "tool"
    folder.mkdir()
    (folder / "half").touch()
    built: list[Path] = []
    for _ in range(2):
        install_once(folder, "1.0", built.append)
    assert built == [folder]
    assert not (folder / "half").exists()
    assert is_installed(folder, "1.0")
    assert not is_installed(folder, "1.1")
    assert (folder / VERSION_FILE).read_text() == "1.0"


def test_the_tail_of_a_missing_log_is_a_message(tmp_path: Path) -> None:
    assert tail(tmp_path / "none.log") == "(no log yet)"


def test_no_secret_is_in_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unleash, "create_unleash_database", lambda config: "postgresql://ratchet:pw@127.0.0.1/unleash")
    launch = unleash.UnleashPart().launch(StackConfig.load(tmp_path, {}))
    secrets = json.loads((tmp_path / "secrets" / "stack.json").read_text()).values()
    assert not any(secret in word for secret in secrets for word in launch.argv)
