"""Makes parsed conversations small: a build holds those of all corrections at once, and they have most in common.

Pydantic keeps with each object the set of fields that it was given, which takes more memory than a short question with
its answers. Objects of one class have few different sets, so they share them; so do conversations their system prompt
and answers that are labels, and all of them short texts such as labels and names.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel

from schemas.conversation import Answer, JsonObject, Message, Role
from schemas.datasets import Example

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T", str, str | None)
_SHORT = 100
"""Characters up to which a text that says the same in many corrections is looked for in others."""


def replaced(model: M, **changes: Any) -> M:
    """Return a copy with changes to fields that the model was given. It shares the set of what it was given."""
    copy = model.model_copy(update=changes)
    object.__setattr__(copy, "__pydantic_fields_set__", model.__pydantic_fields_set__)
    return copy


class Compactor:
    """Shares among all objects that it is given what is equal in them. The objects must be frozen."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._field_sets: dict[frozenset[str], set[str]] = {}
        self._forms: dict[str, JsonObject] = {}
        self._common: dict[tuple[object, ...], BaseModel] = {}

    def __call__(self, model: M) -> M:
        """Return the object itself, smaller by more than half."""
        values = self.share_field_set(model).__dict__
        for name, value in values.items():
            if value and isinstance(value, tuple) and isinstance(value[0], BaseModel):
                values[name] = self.items(value)
        return model

    def share_field_set(self, model: M) -> M:
        """Return the object itself, smaller by its set of fields: for one whose parts are compact already."""
        fields = model.__pydantic_fields_set__
        object.__setattr__(model, "__pydantic_fields_set__", self._field_sets.setdefault(frozenset(fields), fields))
        return model

    def share_form(self, example: Example) -> None:
        """Share the form that an application asked for: it is the same in thousands of rows, each with a copy."""
        if (form := example.response_format) is not None:
            found = self._forms.setdefault(json.dumps(form, sort_keys=True), form)
            example.__dict__["response_format"] = found

    def items(self, models: tuple[M, ...]) -> tuple[M, ...]:
        """Return equal objects, smaller and, where many are the same, shared."""
        return tuple([self._first_equal(model) if _is_common(model) else self(model) for model in models])

    def text(self, text: T) -> T:
        """Return an equal text, shared if it is short: a label, or a name."""
        return text if text is None or len(text) > _SHORT else self._texts.setdefault(text, text)

    def _first_equal(self, model: M) -> M:
        # By the values of its fields: pydantic's own comparison of two objects takes five times as long.
        found = self._common.setdefault((type(model), *model.__dict__.values()), model)
        return found  # type: ignore[return-value]  # Of its own type, which a dict's type cannot say.


def _is_common(item: BaseModel) -> bool:
    """True for what many conversations have: the system prompt, and answers that are as short as a label."""
    if isinstance(item, Answer):
        return len(item.text) <= _SHORT
    if not isinstance(item, Message) or not isinstance(item.content, str):
        return False
    return item.role == Role.SYSTEM or (item.role == Role.ASSISTANT and len(item.content) <= _SHORT)
