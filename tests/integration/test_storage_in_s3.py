"""With RATCHET_STORAGE=s3 the lake and the artifacts are in the stack's S3 server, for every process of the home."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from deploy.devstack import stack
from deploy.devstack.config import stored_storage
from deploy.devstack.errors import PartError
from deploy.devstack.parts import s3
from deploy.devstack.parts.kafka import is_tansu
from deploy.devstack.ports import take_ports
from deploy.lineage import lineage_of
from schemas.lake import PREDICTIONS
from services.evaluator.job import serve
from services.prediction_log.tables import open_table
from shared.errors import DependencyUnavailable
from shared.kafka.broker import build_broker
from shared.kafka.publisher import Publisher
from shared.kafka.topics import create_topics
from shared.privacy.encryption import Cipher
from shared.settings import Settings
from shared.storage import artifacts
from shared.storage import media as media_storage
from shared.storage.artifacts import MANIFEST, ArtifactStore
from shared.storage.media import MediaMissing, MediaStore
from shared.storage.media_files import pack, unpack
from tests.conftest import ROOT, TestStack
from tests.unit.deploy.cli.test_forget import NOON, Artifacts
from tests.unit.prediction_log.deliveries import prediction
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.stack

FOREIGN = {
    "AWS_ACCESS_KEY_ID": "AKIAFOREIGN",
    "AWS_SECRET_ACCESS_KEY": "foreign",
    "AWS_SESSION_TOKEN": "foreign",
    "AWS_PROFILE": "work",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
}
"""What someone has in their environment who uses S3 for other things."""
PUBLISH = "print(store.publish(Path(sys.argv[1]), 'adapters', 'lora-1'))"
FETCH = "print(store.fetch(sys.argv[1]))"
WITH_STORE = """
import sys
from pathlib import Path
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
settings = Settings.load()
store = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
"""


class Home:
    """A home with its lake in S3; processes see nothing of this process's environment but its path."""

    def __init__(self, path: Path) -> None:
        self.stack = TestStack(path)
        self.stack.env["RATCHET_STORAGE"] = "s3"
        self.config = stack.up(["s3", "kafka"], path, env=self.stack.env)
        self.env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "RATCHET_HOME": str(path)}

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        argv, pipe = [sys.executable, *words], subprocess.PIPE
        return subprocess.Popen(argv, env={**self.env, **env}, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: str, **env: str) -> str:
        """Run a process to its end. Returns what it printed; one that fails fails the test."""
        process = self.start(*words, **env)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, errors[-2000:]
        return output.strip()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("home"))
    yield home
    home.stack.stop()


@pytest.fixture
def store(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """Return the test's own store in the server, which is in this process's environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3.environment(home.config).items():
        monkeypatch.setenv(name, value)
    return ArtifactStore(f"s3://ratchet/{tmp_path.name}", tmp_path / "cache")


def point_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{take_ports(1)[0]}")


def folder(path: Path, content: str = "x") -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "data.txt").write_text(content)
    (path / MANIFEST).write_text("{}")
    return path


async def log_predictions(home: Home, count: int) -> None:
    settings = Settings(kafka=home.config.address("kafka"), kafka_idempotence=not is_tansu(home.config))
    create_topics(settings)
    broker = build_broker(settings, "gateway")
    await broker.connect()
    try:
        for number in range(count):
            await Publisher(broker, "gateway").publish(prediction(f"p-{number}"))
    finally:
        await broker.stop()


def stored_predictions() -> int:
    table = open_table("s3://ratchet/lake", PREDICTIONS)
    return 0 if table is None else table.to_pyarrow_table().num_rows


def test_what_one_process_writes_to_the_lake_another_reads(home: Home, store: ArtifactStore) -> None:
    asyncio.run(log_predictions(home, 5))
    writer = home.start("-m", "deploy.runner", "prediction_log", **FOREIGN)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while stored_predictions() < 5:
            assert writer.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        for foreign in ({}, FOREIGN):
            status = json.loads(home.run("-m", "deploy.cli.app", "lake", "status", "--json", **foreign))
            assert status["lake"] == "s3://ratchet/lake"
            rows = {table["table"]: (table["rows"], table["waiting"]) for table in status["tables"]}
            assert rows["predictions"] == (5, 0), status
    finally:
        writer.terminate()
        writer.communicate()
    assert not (home.config.home / "lake").exists()


def test_an_adapter_of_one_process_is_fetched_by_another_to_where_vllm_looks(home: Home, tmp_path: Path) -> None:
    address = home.run("-c", WITH_STORE + PUBLISH, str(folder(tmp_path / "a")), **FOREIGN)
    assert address == "s3://ratchet/artifacts/adapters/lora-1"
    fetched = Path(home.run("-c", WITH_STORE + FETCH, address))
    assert fetched == home.config.adapters / "lora-1"
    assert (fetched / "inner" / "data.txt").read_text() == "x"
    assert not (home.config.home / "artifacts").exists()


def test_the_users_own_lake_and_keys_stay(home: Home) -> None:
    show = "import os; from shared.settings import Settings; print(Settings.load().lake_uri, os.environ['AWS_PROFILE'])"
    own = {"RATCHET_LAKE": "s3://mine/lake", "RATCHET_ARTIFACTS": "s3://mine/artifacts"}
    assert home.run("-c", show, **own, **FOREIGN) == "s3://mine/lake work"


def test_the_home_remembers_its_storage_and_does_not_change_it_while_it_runs(home: Home) -> None:
    unset = {name: value for name, value in home.stack.env.items() if name != "RATCHET_STORAGE"}
    path = home.config.home
    assert "lake, artifacts" in next(row.detail for row in stack.status(path, env=unset) if row.part == "s3")
    stack.up(["s3"], path, env=unset)
    assert stored_storage(path) == "s3"
    with pytest.raises(PartError, match="RATCHET_STORAGE=folder, but this home runs with RATCHET_STORAGE=s3"):
        stack.up(["s3"], path, env={**unset, "RATCHET_STORAGE": "folder"})
    assert stored_storage(path) == "s3"


def test_an_unknown_storage_is_an_error_with_its_way_out(home: Home) -> None:
    process = home.start("-m", "deploy.cli.app", "status", RATCHET_STORAGE="nonsense")
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert errors == "RATCHET_STORAGE='nonsense' is neither folder nor s3\nSet it to folder or s3.\n"


def test_an_artifact_is_complete_or_absent_and_the_first_stays(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(DependencyUnavailable, match="no artifact at"):
        store.fetch(store.address("datasets", "d-1"))
    with artifacts._object_store(store.address("datasets", "d-1")) as objects:
        objects.put("train.jsonl", b"unfinished")
    with pytest.raises(DependencyUnavailable, match="no artifact at"):
        store.fetch(store.address("datasets", "d-1"))
    for content in ("first", "second"):
        address = store.publish(folder(tmp_path / content, content), "datasets", "d-1")
    with ThreadPoolExecutor(8) as pool:
        (fetched,) = set(pool.map(store.fetch, [address] * 8))
    assert (fetched / "inner" / "data.txt").read_text() == "first"
    assert [path.name for path in fetched.parent.iterdir()] == ["d-1"], "nothing temporary is left"


def test_what_a_server_refuses_or_does_not_answer_may_come_back(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    with pytest.raises(DependencyUnavailable, match="unavailable"):
        store.fetch(store.address("datasets", "d-1"))
    monkeypatch.setattr(artifacts, "RETRY", timedelta(seconds=1))
    point_to_nobody(monkeypatch)
    for action in (lambda: store.fetch(store.address("datasets", "d-1")), lambda: store.names("datasets")):
        with pytest.raises(DependencyUnavailable, match="unavailable"):
            action()


def test_the_evaluator_fetches_an_adapter_before_vllm_is_asked_for_it(store: ArtifactStore, tmp_path: Path) -> None:
    asked: dict[str, Path] = {}

    class Vllm:
        async def serve_adapter(self, name: str, folder: str) -> None:
            asked[name] = Path(folder)
            assert (Path(folder) / "inner" / "data.txt").exists()

    address = store.publish(folder(tmp_path / "a"), "adapters", "lora-1")
    asyncio.run(serve(Vllm(), store, "lora-1", address, lambda folder: None))  # type: ignore[arg-type]
    assert asked["lora-1"].parent == tmp_path / "cache" / "ratchet" / tmp_path.name / "adapters"


def test_a_person_is_found_in_datasets_and_adapters(store: ArtifactStore, tmp_path: Path) -> None:
    made = Artifacts(tmp_path / "made")
    made.dataset("desk-1", {"u1": NOON}, {"u3": NOON}, rejected="u4")
    made.adapter("lora-1", "desk-1")
    for kind, name in (("datasets", "desk-1"), ("adapters", "lora-1")):
        store.publish(made.folder / kind / name, kind, name)
    found = lineage_of(store, ["u1"], ["desk"], NOON)
    assert [(use.adapter, use.examples) for use in found.adapters] == [("lora-1", 1)]
    assert found.unknown == {}
    assert lineage_of(ArtifactStore("s3://ratchet/empty", tmp_path), ["u1"], ["desk"], NOON).datasets == []


def test_kept_media_are_added_read_and_deleted_for_people_and_by_age(
    home: Home, store: ArtifactStore, tmp_path: Path
) -> None:
    media, cipher = MediaStore(f"s3://ratchet/{tmp_path.name}"), Cipher(b"k" * 32)

    def add(subject: str, day: int, hour: int = 12) -> bool:
        at = datetime(2026, 3, day, hour, tzinfo=UTC)
        file = pack(b'{"part":{},"path":["image_url"],"prefix":""}', "UE5H", at.timestamp(), cipher)
        return media.add(f"media/desk/{at.date()}/{subject}/h{hour}", file)

    def has(subject: str, day: int, hour: int = 12) -> bool:
        try:
            return unpack(media.read(f"media/desk/2026-03-{day:02}/{subject}/h{hour}"), cipher).content == b"PNG"
        except MediaMissing:
            return False

    assert all(add(subject, day) for subject in ("ann", "bob") for day in (1, 2, 3))
    assert add("ann", 2, 15)
    assert add("ann", 1)  # Idempotent.
    media.forget("desk", {"ann": datetime(2026, 3, 2, 13, tzinfo=UTC)})
    assert [has("ann", 1), has("ann", 2), has("ann", 2, 15), has("ann", 3)] == [False, False, True, True]
    assert not add("ann", 1)
    assert media.delete_before("desk", date(2026, 3, 3)) == 3
    assert [has("bob", day) for day in (1, 2, 3)] == [False, False, True]


def test_media_wait_while_the_server_refuses_or_does_not_answer(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_storage, "RETRY", timedelta(seconds=1))
    point_to_nobody(monkeypatch)
    away = MediaStore(f"s3://ratchet/{tmp_path.name}")
    for action in (
        lambda: away.forget("desk", {"ann": NOON}), lambda: away.delete_before("desk", NOON.date()),
        lambda: away.read("media/desk/2026-03-01/ann/a"),
    ):  # fmt: skip
        with pytest.raises(DependencyUnavailable, match="unavailable"):
            action()
