"""`ratchet install kafka`: the release comes from a local server; the archive, its hash and its unpacking are real."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from deploy.cli import stack as commands
from deploy.devstack import stack
from deploy.devstack.config import StackConfig
from deploy.devstack.install import apache_kafka, java
from deploy.devstack.install.packages import install_once
from deploy.devstack.parts import kafka
from deploy.devstack.supervision.processes import ProcessIdentity

JARS = os.urandom(12_000_000)  # Two reports of progress.
OTHER_PARTS = ("postgres", "unleash", "vllm", "services")


@functools.cache
def release() -> bytes:
    """Return an archive that has the shape of Apache's."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=0) as archive:
        for name, content in {
            "LICENSE": b"Apache License", "NOTICE": b"Apache Kafka", "bin/kafka-topics.sh": b"#!/bin/bash",
            "libs/kafka.jar": JARS, "libs/inner/deep.jar": b"", "site-docs/docs.tgz": b"",
        }.items():  # fmt: skip
            member = tarfile.TarInfo(f"kafka_2.13-4.3.1/{name}")
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("kafka_2.13-4.3.1/libs/passwd.jar")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return file.getvalue()


class Mirror:
    """Apache's servers on this machine: `/old` has no such release, `/release` has `content`."""

    def __init__(self, content: bytes) -> None:
        self.content, self.downloads, self.cut_after = content, 0, len(content)
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200 if self.path == "/release" else 404)
                self.send_header("Content-Length", str(len(mirror.content)))
                self.end_headers()

            def do_GET(self) -> None:
                mirror.downloads += 1
                self.do_HEAD()
                self.wfile.write(mirror.content[: mirror.cut_after])

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._url = f"http://127.0.0.1:{self._server.server_port}"
        self.urls = (f"{self._url}/old", f"{self._url}/release")
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    mirror = Mirror(release())
    monkeypatch.setattr(apache_kafka, "URLS", mirror.urls)
    monkeypatch.setattr(apache_kafka, "SHA256", hashlib.sha256(mirror.content).hexdigest())
    monkeypatch.setattr(java, "machine_java", lambda: "/usr/bin/java")
    yield mirror
    mirror.close()


@pytest.fixture
def config(tmp_path: Path) -> StackConfig:
    return StackConfig.load(tmp_path / "home", {"RATCHET_TOOLS": str(tmp_path / "tools")})


def install_kafka(config: StackConfig, **env: str) -> list[str]:
    """Run `ratchet install kafka` and return what it reported."""
    words: list[str] = []
    stack.install(
        ["kafka"],
        config.home,
        env={"RATCHET_TOOLS": str(config.tools), **env},
        on_progress=lambda *report: words.append(" ".join(report)),
    )
    return words


def assert_nothing_changed(config: StackConfig) -> None:
    assert not [path for path in config.tools.parent.rglob("*") if path != config.tools]
    assert kafka.is_tansu(config)


def test_the_release_is_fetched_and_used_from_then_on(config: StackConfig, mirror: Mirror) -> None:
    words = install_kafka(config)
    folder = config.tools / "kafka"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"libs/kafka.jar", "LICENSE", "NOTICE", ".ratchet-installed"}
    assert (folder / "libs" / "kafka.jar").read_bytes() == JARS
    progress = [f"kafka installing downloading Apache Kafka 4.3.1: {count} of 12 MB" for count in (0, 10)]
    assert words == [
        *progress,
        "kafka installing unpacking Apache Kafka 4.3.1",
        "kafka installing ",
        "kafka ready installed",
    ]
    assert kafka.distribution(config) == folder
    assert [part.name for part in stack.select(config, ["kafka"])] == ["kafka"], "no S3 server"
    assert {path.name for path in config.tools.iterdir()} == {"kafka", ".kafka.lock"}, "the archive is deleted"


def test_a_second_install_says_so_and_downloads_nothing(config: StackConfig, mirror: Mirror) -> None:
    install_kafka(config)
    assert f"kafka installing Apache Kafka is already installed: {config.tools / 'kafka'}" in install_kafka(config)
    assert mirror.downloads == 1


def test_homes_share_the_release_and_only_the_one_that_asked_uses_it(
    config: StackConfig, tmp_path: Path, mirror: Mirror
) -> None:
    install_kafka(config)
    other = StackConfig.load(tmp_path / "other", {"RATCHET_TOOLS": str(config.tools)})
    assert kafka.is_tansu(other)
    install_kafka(other)
    assert kafka.distribution(other) == config.tools / "kafka"
    assert mirror.downloads == 1


def test_another_file_is_refused_and_nothing_is_left(
    config: StackConfig, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apache_kafka, "SHA256", "0" * 64)
    with pytest.raises(stack.StackError, match="its sha256 is") as error:
        install_kafka(config)
    assert "KAFKA_HOME" in error.value.way_out
    assert_nothing_changed(config)


def test_a_lost_connection_is_reported_and_nothing_is_left(config: StackConfig, mirror: Mirror) -> None:
    mirror.cut_after = 5_000_000
    with pytest.raises(stack.StackError, match=r"connection was lost after 5\.0 of 12\.0 MB"):
        install_kafka(config)
    assert_nothing_changed(config)
    mirror.cut_after = len(mirror.content)
    install_kafka(config)
    assert not kafka.is_tansu(config)


def test_where_no_server_answers_it_says_so_at_once_and_changes_nothing(config: StackConfig, mirror: Mirror) -> None:
    mirror.close()
    with pytest.raises(stack.StackError, match="cannot be downloaded: neither 127") as error:
        install_kafka(config)
    assert error.value.way_out == "Set KAFKA_HOME to an unpacked Apache Kafka, or stay with tansu: ratchet up"
    assert_nothing_changed(config)
    assert not config.tools.exists()


def test_an_unnamed_kafka_is_never_downloaded(
    config: StackConfig, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "tansu_binary", lambda config: "tansu")
    monkeypatch.setattr("deploy.devstack.parts.s3.find_program", lambda config: "weed")
    env = {"RATCHET_TOOLS": str(config.tools)}
    stack.install(None, config.home, env=env, without=OTHER_PARTS)
    assert mirror.downloads == 0
    assert kafka.is_tansu(config)


def test_a_kafka_that_the_user_has_is_not_downloaded(config: StackConfig, tmp_path: Path, mirror: Mirror) -> None:
    (tmp_path / "mine" / "libs").mkdir(parents=True)
    (tmp_path / "mine" / "libs" / "kafka.jar").touch()
    install_kafka(config, KAFKA_HOME=str(tmp_path / "mine"))
    install_kafka(config, RATCHET_KAFKA="broker:9092")
    kafka.distribution_file(config).parent.mkdir(parents=True)
    kafka.distribution_file(config).write_text(str(tmp_path / "mine"))
    install_kafka(config)
    assert mirror.downloads == 0
    assert kafka.distribution(config) == tmp_path / "mine"


def test_the_broker_is_not_exchanged_while_it_runs(config: StackConfig, mirror: Mirror) -> None:
    supervisor = asdict(ProcessIdentity.of(os.getpid()))
    record = {"part": "kafka", "supervisor": supervisor, "log": "", "address": "", "environment": {}, "launch": {}}
    config.records.mkdir(parents=True)
    (config.records / "kafka.json").write_text(json.dumps(record))
    with pytest.raises(stack.StackError, match="this home's broker is running") as error:
        install_kafka(config)
    assert error.value.way_out == "ratchet down, then: ratchet install kafka"
    assert mirror.downloads == 0
    assert kafka.is_tansu(config)


def test_the_command_says_what_becomes_of_tansus_records(
    config: StackConfig, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RATCHET_HOME": str(config.home), "RATCHET_TOOLS": str(config.tools)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("KAFKA_HOME", raising=False)
    commands.install(["kafka"])
    assert "It starts empty" not in capsys.readouterr().out
    (config.home / "data" / "s3").mkdir(parents=True)
    commands.install(["kafka"])
    output = capsys.readouterr().out
    assert "It starts empty" in output and "ratchet lake resume" in output
    assert f"Back to tansu: ratchet down, then delete {kafka.distribution_file(config)}" in output
    (config.home / "data" / "kafka").mkdir()
    (config.home / "data" / "kafka" / "meta.properties").touch()
    assert "It starts empty" not in kafka.KafkaPart().note(config), "Apache Kafka has started by now"
    kafka.distribution_file(config).unlink()
    assert kafka.is_tansu(config)


def test_a_missing_tansu_is_not_installed_by_the_command_that_replaces_it(
    config: StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "tansu_binary", lambda config: None)
    env = {"RATCHET_TOOLS": str(config.tools), **stack.free_ports()}
    rows = {row.part: row for row in stack.status(config.home, env=env)}
    assert rows["kafka"].detail == "ratchet up --only kafka"
    with pytest.raises(stack.StackError) as error:
        stack.up(["kafka"], config.home, env=env, without=["s3"], installing=False)
    assert error.value.failures["kafka"].way_out == "ratchet up --only kafka"


def test_an_installation_that_failed_is_deleted(tmp_path: Path) -> None:
    def fill_the_disk(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        install_once(tmp_path / "tool", "1.0", fill_the_disk)
    assert not (tmp_path / "tool").exists()
