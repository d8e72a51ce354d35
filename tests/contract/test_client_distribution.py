"""What `pip install ./client` gives an application: the package `ratchet`, typed, and nothing else."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT
from tests.waiting import PATIENCE_SECONDS

CLIENT = ROOT / "client"
QUICKSTART, OF_THE_DOCS = (
    next(
        code
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
        if "import ratchet" in code
    )
    for page in (CLIENT / "README.md", ROOT / "docs" / "how-to" / "log-answers-of-another-provider.md")
)
EXAMPLES = "\n".join(re.findall(r"```python\n(.*?)```", (CLIENT / "README.md").read_text(), flags=re.DOTALL))


def run(*argv: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, CLIENT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment in which only the wheel was installed; no index could give it more."""
    home = tmp_path_factory.mktemp("application")
    venv.create(home, with_pip=False)
    interpreter = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--no-index", wheel, cwd=home)
    return interpreter


@pytest.fixture
def gateway() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A server's address, and the path and body of each request that it got."""
    requests: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()
    server.server_close()


def test_the_wheel_has_the_package_and_its_type_marker_only(wheel: Path) -> None:
    files = [name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(files) == ["ratchet/__init__.py", "ratchet/client.py", "ratchet/py.typed", "ratchet/spans.py"]


def test_no_other_distribution_is_installed_with_it(python: Path) -> None:
    code = "import importlib.metadata as m; print([d.name for d in m.distributions()], m.requires('ratchet-client'))"
    assert run(python, "-c", code, cwd=python.parent) == "['ratchet-client'] None\n"


@pytest.mark.parametrize("quickstart", [QUICKSTART, OF_THE_DOCS], ids=["client", "docs"])
def test_the_quickstart_runs_and_its_answer_and_feedback_arrive(
    quickstart: str, python: Path, tmp_path: Path, gateway: tuple[str, list[tuple[str, Any]]]
) -> None:
    url, requests = gateway
    program = tmp_path / "quickstart.py"
    program.write_text(quickstart.replace("http://localhost:28080", url), encoding="utf-8")
    run(python, "-W", "error", program, cwd=tmp_path)
    (logged_at, logged), (feedback_at, feedback) = requests
    assert (logged_at, logged["task"], logged["answer"]) == ("/v1/predictions", "support-desk", "delivery")
    assert (feedback_at, feedback["positive"]) == ("/v1/feedback", False)
    assert feedback["prediction_id"] == f"support-desk/{logged['prediction_id']}"


def test_an_application_sees_the_types(python: Path, tmp_path: Path) -> None:
    program = tmp_path / "application.py"
    own = "from typing import Any\ntracer_provider: Any = None\nopenai_client: Any = None\n"
    mistake = "reveal_type(prediction_id)\nclient.log(1, messages, answer)\n"
    program.write_text(f"{own}{EXAMPLES}{mistake}", encoding="utf-8")
    argv = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), str(program)]
    checked = subprocess.run(argv, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert 'Revealed type is "str"' in checked.stdout.replace("builtins.", "")
    assert "[arg-type]" in checked.stdout and "Found 1 error" in checked.stdout, checked.stdout + checked.stderr


def test_the_code_is_valid_for_the_oldest_declared_python() -> None:
    assert 'requires-python = ">=3.9"' in (CLIENT / "pyproject.toml").read_text()
    for path in (CLIENT / "ratchet").glob("*.py"):
        ast.parse(path.read_text(), path.name, feature_version=(3, 9))
