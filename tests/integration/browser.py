"""A real browser for tests of pages: headless Chromium, whose binary an npm package carries, driven by Playwright.

Playwright's own download is of no registry; `@sparticuz/chromium` brings the browser, and the libraries and the font
that a bare machine lacks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from deploy.devstack.config import StackConfig
from deploy.devstack.install.packages import install_once, run_logged
from deploy.devstack.parts.unleash import NPM_OPTIONS, ensure_node, npm

PACKAGE, VERSION = "@sparticuz/chromium", "147.0.0"
UNPACK = """
const fs = require("fs"), zlib = require("zlib");
for (const name of ["chromium", "al2023.tar", "fonts.tar"])
  fs.writeFileSync(name, zlib.brotliDecompressSync(fs.readFileSync(`node_modules/@sparticuz/chromium/bin/${name}.br`)));
"""


# The package's own file names folders of AWS Lambda; without a font Chromium lays out no text at all.
FONTS = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{folder}/fonts</dir>
  <cachedir>{folder}/fonts-cache</cachedir>
</fontconfig>
"""


def chromium(config: StackConfig) -> Path:
    """Return the folder of the browser, installed if absent: `chromium`, `lib/` and `fonts/`."""
    node = ensure_node(config, print)

    def build(folder: Path) -> None:
        (folder / "package.json").write_text('{"name": "ratchet-browser", "private": true}\n')
        log, package = config.logs / "install-browser.log", f"{PACKAGE}@{VERSION}"
        argv = [*npm(config), "install", "--prefix", str(folder), package, *NPM_OPTIONS]
        run_logged(argv, log, f"npm install {package}", "Is the npm registry reached?", cwd=folder)
        run_logged([node, "-e", UNPACK], log, f"unpacking {package}", "", cwd=folder)
        for name in ("al2023.tar", "fonts.tar"):
            with tarfile.open(folder / name) as archive:
                archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian's Python 3.11.2 has none.
                archive.extractall(folder)
            (folder / name).unlink()
        (folder / "chromium").chmod(0o755)
        shutil.rmtree(folder / "node_modules")

    return install_once(config.tools / "browser", f"{PACKAGE} {VERSION}", build)


def misses_libraries(program: Path) -> bool:
    found = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    return "not found" in found.stdout


@contextmanager
def browser(config: StackConfig) -> Iterator[Browser]:
    folder = chromium(config)
    fonts = folder / "ratchet-fonts.conf"
    fonts.write_text(FONTS.format(folder=folder))
    env: dict[str, str | float | bool] = {**os.environ, "FONTCONFIG_FILE": str(fonts)}
    if misses_libraries(folder / "chromium"):
        env["LD_LIBRARY_PATH"] = str(folder / "lib")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=folder / "chromium", args=["--no-sandbox"], env=env, timeout=120_000
        )
        yield started
        started.close()


@contextmanager
def opened(started: Browser, address: str, width: int) -> Iterator[tuple[Page, list[str]]]:
    """A page, and everything that it complained of: console messages, errors, requests that failed or went out."""
    complaints: list[str] = []
    page = started.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("request", lambda request: complaints.append(f"loads {request.url}") if request.url != address else None)
    try:
        page.goto(address, timeout=60_000)
        yield page, complaints
    finally:
        page.close()
