"""The models that are no task and pass through to another API. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence


class PassedModels:
    """`models`: names, and patterns in which `*` stands for anything."""

    def __init__(self, models: Sequence[str] = ()) -> None:
        self.names = tuple(sorted({model for model in models if "*" not in model}))
        """Those that can be listed."""
        self._pattern = re.compile("|".join(re.escape(model).replace(r"\*", ".*") for model in models), re.DOTALL)
        self._any = bool(models)

    def __contains__(self, model: str) -> bool:
        return self._any and self._pattern.fullmatch(model) is not None


NO_MODELS = PassedModels()
