"""`docs/configuration.md`, generated from the settings classes: `python -m deploy.settings_reference [--check]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from deploy.devstack.config import PORTS
from deploy.variables import settings_fields

FILE = Path(__file__).parents[1] / "docs" / "configuration.md"
_HEAD = """# Configuration

Every setting is an environment variable `RATCHET_…`, read once when a process starts. Sources, first wins: the
environment, then `<home>/stack.env` (written by `ratchet up`), then a file of `<home>/secrets` that has the variable's
name in lower case (`ratchet_vllm_key`), then the default. `<home>` is `RATCHET_HOME`. What a *task* is (labels,
prompts, gates, schedule, redaction, retention) is a YAML file instead:
[`deploy/tasks/template.yaml`](../deploy/tasks/template.yaml) explains every key.

A variable that begins with `RATCHET_` and is none of these does nothing: `ratchet` and the log of every service name it
at the start. In Kubernetes set `enableServiceLinks: false`, since beside a service `ratchet-gateway` each pod would get
`RATCHET_GATEWAY_PORT`, with an address in it.

This file is generated from the settings classes by `python -m deploy.settings_reference`, and `make check` fails
where the two differ.
"""


def render() -> str:
    """Return the Markdown text. Raises ValueError for a setting without a description."""
    parts = [_HEAD, *(_table(*group) for group in settings_fields())]
    ports = "\n".join(f"| `RATCHET_{name.upper()}_PORT` | `{port}` |" for name, port in PORTS.items())
    parts.append(f"""## The local stack

Read by `ratchet up` and its kin ([`deploy/devstack/config.py`](../deploy/devstack/config.py)). `RATCHET_TOOLS` is
where programs are installed (default `<home>/tools`; several homes may share it), `KAFKA_HOME` an Apache Kafka
distribution to run instead of tansu, `RATCHET_BASE_MODEL` the base model's name on the Hugging Face Hub.
`RATCHET_STORAGE` is where the lake and the artifacts are: `folder` (in the home) or `s3` (in the stack's own S3
server); default: as at the last `ratchet up` of this home, at first `folder`. `RATCHET_TORCH_INDEX`
is where pip finds a CPU build of torch if its own index has none, in the place of PyTorch's, also in `make`'s set-up.

| port | default |
|---|---|
{ports}
""")
    return "\n".join(parts)


def _table(title: str, file: str, fields: dict[str, FieldInfo]) -> str:
    rows = []
    for name, info in fields.items():
        if not info.description:
            raise ValueError(f"{file}: {name} has no description")
        meaning = re.sub(r"<\w+>", r"`\g<0>`", info.description)  # A renderer takes it for HTML.
        rows.append(f"| `RATCHET_{name.upper()}` | {_default(info)} | {meaning} |")
    table = "\n".join(rows)
    return f"## {title}\n\n[`{file}`](../{file})\n\n| variable | default | meaning |\n|---|---|---|\n{table}\n"


def _default(info: FieldInfo) -> str:
    value = info.default
    if info.is_required() or info.default_factory or value is None or isinstance(value, SecretStr) or value == "":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main() -> None:
    """Write the file, or with `--check` exit with 1 where it differs."""
    text = render()
    if "--check" not in sys.argv:
        FILE.write_text(text, encoding="utf-8")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != text:
        sys.exit(f"{FILE.name} is not what the settings say\nRun: python -m deploy.settings_reference")


if __name__ == "__main__":
    main()
