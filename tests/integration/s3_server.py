"""A real S3 server for tests: the local stack's, in a home of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from deploy.devstack import stack
from deploy.devstack.config import StackConfig
from deploy.devstack.object_store import open_bucket
from deploy.devstack.parts import s3
from deploy.devstack.supervision import records


class S3Server:
    """Starts in `home`; what is in it survives a stop."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._env = {**os.environ, **stack.free_ports()}
        self._config = StackConfig.load(home, self._env)

    @property
    def environment(self) -> dict[str, str]:
        """What an S3 client finds it by."""
        return s3.environment(self._config)

    def start(self) -> None:
        """Returns when it stores."""
        stack.up(["s3"], self._home, env=self._env)

    def make_bucket(self, name: str) -> None:
        open_bucket(name, self.environment).put("probe", b"")

    def stop(self) -> None:
        """As a power cut does; its supervisor goes first, which would start it again."""
        if record := records.read(self._config, "s3"):
            for process in filter(None, (record.supervisor, record.child)):
                process.signal(signal.SIGKILL)
                process.wait_gone(5.0)
        for name in s3.S3Part.ports:  # It puts some sockets here, whatever it is told.
            for socket in Path("/tmp").glob(f"seaweedfs-*-{self._config.ports[name]}.sock"):
                socket.unlink(missing_ok=True)
