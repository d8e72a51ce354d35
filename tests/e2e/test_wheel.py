"""The wheel in an environment that has nothing else: no checkout, no extra but the one asked for."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT

PACKAGES = ("schemas", "services", "shared", "deploy")


def run(*argv: str | Path, cwd: Path) -> str:
    """What a command prints, with an environment that knows nothing of the checkout."""
    done = subprocess.run(
        argv, cwd=cwd, env={"PATH": "/usr/bin:/bin", "HOME": str(cwd)}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    argv = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    subprocess.run(argv, cwd=folder, check=True, timeout=600)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the wheel and what the scheduler needs."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False)
    argv = (sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "--quiet", "--no-compile")
    subprocess.run((*argv, "-c", ROOT / "constraints.txt", f"{wheel}[scheduler]"), cwd=home, check=True, timeout=600)
    return home / "bin"


def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    files = subprocess.run(("git", "ls-files", *PACKAGES), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(files.splitlines()) - set(ZipFile(wheel).namelist()) == set()


def test_the_command_tells_what_it_can_do_and_checks_a_task(environment: Path, tmp_path: Path) -> None:
    assert "tasks" in run(environment / "ratchet", "--help", cwd=tmp_path)
    task = tmp_path / "task.yaml"
    task.write_text((ROOT / "deploy" / "tasks" / "template.yaml").read_text())
    assert "my-task" in run(environment / "ratchet", "tasks", "check", task, cwd=tmp_path)


def test_the_service_of_its_extra_is_built(environment: Path, tmp_path: Path) -> None:
    code = "from deploy import runner; print(*runner.build_services(['scheduler']))"
    assert "scheduler" in run(environment / "python", "-c", code, cwd=tmp_path)
