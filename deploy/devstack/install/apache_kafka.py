"""Installs Apache Kafka's release into `tools/kafka`: a pinned download, of which the jars and the licence stay."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.install.packages import install_once, is_installed, reachable
from deploy.devstack.part import Say

VERSION = "4.3.1"
SHA256 = "f118328b2d053497350d5befd82c08db7ffd710327ff52943dd5caaa1b25db21"
URLS = (
    f"https://dlcdn.apache.org/kafka/{VERSION}/kafka_2.13-{VERSION}.tgz",
    f"https://archive.apache.org/dist/kafka/{VERSION}/kafka_2.13-{VERSION}.tgz",
)
"""The first is faster and drops old releases; the archive keeps them."""
WAY_OUT = "Set KAFKA_HOME to an unpacked Apache Kafka, or stay with tansu: ratchet up"
CHUNK_BYTES = 1 << 20
SAY_EVERY_BYTES = 10_000_000
STALLED_SECONDS = 30.0
"""A download ends with an error when nothing arrives for this long."""


def release_folder(config: StackConfig) -> Path:
    return config.tools / "kafka"


def is_release_installed(config: StackConfig) -> bool:
    return is_installed(release_folder(config), VERSION)


def install_release(config: StackConfig, say: Say) -> None:
    """Download the release, check its hash and unpack it. Idempotent. Raises PartError: then nothing is left behind."""
    if is_release_installed(config):
        return
    url = next((url for url in URLS if reachable(url)), None)
    if url is None:
        hosts = " nor ".join(str(urlsplit(url).hostname) for url in URLS)
        raise PartError(f"Apache Kafka {VERSION} cannot be downloaded: neither {hosts} has it or answers", WAY_OUT)
    try:
        config.tools.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.tools) as archive:  # It has no name: nothing is left even after a kill.
            _download(url, archive, say)
            say(f"unpacking Apache Kafka {VERSION}")
            install_once(release_folder(config), VERSION, lambda folder: _unpack(archive, folder))
    except (OSError, HTTPException, tarfile.TarError) as error:
        reason = f"Apache Kafka {VERSION} could not be installed from {url}: {error}"
        raise PartError(reason, f"Repeat: ratchet install kafka. Or: {WAY_OUT}") from error


def _download(url: str, file: IO[bytes], say: Say) -> None:
    """Write what `url` names to `file`. Raises OSError if it is cut short, stalls or has another hash."""
    digest, received, said = hashlib.sha256(), 0, -SAY_EVERY_BYTES
    with urllib.request.urlopen(url, timeout=STALLED_SECONDS) as response:  # noqa: S310  # only fixed https addresses
        size = int(response.headers.get("Content-Length") or 0)
        while True:
            if received - said >= SAY_EVERY_BYTES:
                of_size = f" of {size / 1e6:.0f}" if size else ""
                say(f"downloading Apache Kafka {VERSION}: {received / 1e6:.0f}{of_size} MB")
                said = received
            chunk = response.read(CHUNK_BYTES)
            if not chunk:
                break
            digest.update(chunk)
            file.write(chunk)
            received += len(chunk)
    if received < size:  # urllib takes a closed connection for the end of the file.
        raise OSError(f"the connection was lost after {received / 1e6:.1f} of {size / 1e6:.1f} MB")
    if digest.hexdigest() != SHA256:
        raise OSError(f"this is another file: its sha256 is {digest.hexdigest()}, expected {SHA256}")


def _unpack(file: IO[bytes], folder: Path) -> None:
    """Unpack `libs/`, LICENSE and NOTICE without the archive's top folder. The rest is scripts and documentation."""
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:gz") as archive:
        # Pythons before 3.11.4 do not have the filter, and ignore this; they unpack the same regular files.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        for member in archive:
            _, *inside = PurePosixPath(member.name).parts
            if member.isreg() and (inside[:-1] == ["libs"] or inside in (["LICENSE"], ["NOTICE"])):
                member.name = "/".join(inside)
                archive.extract(member, folder)
