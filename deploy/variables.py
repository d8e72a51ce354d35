"""All environment variables that are settings: one that is misspelt is named, since it does nothing."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Collection, Iterable, Iterator

from pydantic.fields import FieldInfo

from deploy.demo.settings import LoopSettings
from deploy.devstack.config import PORTS
from schemas.catalog import SERVICES
from shared.settings import Settings

_PREFIX = "RATCHET_"
_OF_THE_STACK = ("HOME", "TOOLS", "STORAGE", "BASE_MODEL", "TORCH_INDEX", "UNLEASH_ADMIN_TOKEN")
"""Read without a settings class, beside the ports."""
_OTHERS = re.compile(
    r"RATCHET_(JUDGE|BENCH|TEST|SOAK|CHAOS|SIMULATED|BANKING77)|.*_SERVICE_(HOST|PORT)(_\w+)?$|.*_PORT_\d+_(TCP|UDP)(_\w+)?$"
)
"""Keys of judges, which tasks name; what benchmarks and tests read; and what Kubernetes sets in every pod beside a
service whose name begins with ours."""


def settings_fields() -> Iterator[tuple[str, str, dict[str, FieldInfo]]]:
    """Yield the settings in groups: who reads them, the file that has them, and the fields by name."""
    common = Settings.model_fields
    yield "All services", "shared/settings.py", common
    for service in SERVICES:
        if importlib.util.find_spec(f"services.{service}.settings") is None:  # It has the common ones alone.
            continue
        name = "".join(word.title() for word in service.split("_")) + "Settings"
        module = importlib.import_module(f"services.{service}.settings")
        own = {key: info for key, info in getattr(module, name).model_fields.items() if key not in common}
        yield service, f"services/{service}/settings.py", own
    loop = {key: info for key, info in LoopSettings.model_fields.items() if key.startswith("loop_")}
    yield "`ratchet loop`", "deploy/demo/settings.py", loop


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Return a sentence for each variable that looks like a setting and is none."""
    names = [*_OF_THE_STACK, *(f"{name}_port" for name in PORTS)]
    names += [name for _, _, fields in settings_fields() for name in fields]
    known = {_PREFIX + name.upper() for name in names}
    ours = sorted(name for name in environment if name.startswith(_PREFIX) and not _OTHERS.match(name))
    return [_sentence(name, known) for name in ours if name not in known]


def _sentence(name: str, known: Collection[str]) -> str:
    meant = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    way_out = f"Did you mean {meant[0]}?" if meant else "docs/configuration.md has every setting."
    return f"{name} is no setting, and does nothing. {way_out}"
