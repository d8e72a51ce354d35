"""Forms of answers: of several labels a box for each; of calls, for each a function and its arguments, or a text where
no call is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from nicegui import ui

from schemas.tasks import TaskSpec
from schemas.tools import NO_CALL, CallsPerAnswer, ToolChoice
from services.console.calls import FormCall, answer_of_form, form_calls, form_text, inputs_of
from services.console.domain import keys_for
from services.console.pages.layout import html
from shared.answers.label_set import listed_labels


class LabelForm:
    """What a reviewer ticks of several labels. Reviews are blind: nothing is ticked beforehand, but for `ticked`, an
    earlier answer of theirs."""

    def __init__(self, labels: Sequence[str], ticked: str = "") -> None:
        self._labels = labels
        self._keys = keys_for(labels)
        self._before = listed_labels(ticked) or frozenset()
        self._boxes: dict[str, ui.checkbox] = {}

    def draw(self) -> None:
        """Show the boxes, each with its key."""
        keys = {label: key for key, label in self._keys.items()}
        with ui.element("div").classes("answers"):
            for label in self._labels:
                with ui.element("div").classes("row").style("align-items: center"):
                    if key := keys.get(label):
                        html(f"<kbd>{escape(key)}</kbd>")
                    self._boxes[label] = ui.checkbox(label, value=label in self._before).props("dense")

    def press(self, key: str) -> None:
        """Tick a label by its key, or take its tick away. A key of none does nothing."""
        if (label := self._keys.get(key.lower())) is not None:
            self._boxes[label].value = not self._boxes[label].value

    def answer(self) -> str:
        """Return the ticked labels as one text; none may be ticked."""
        return json.dumps([label for label, box in self._boxes.items() if box.value], ensure_ascii=False)


class CallForm:
    """What a reviewer fills in. `answer` is valid, or says what is not."""

    def __init__(self, spec: TaskSpec, draft: str) -> None:
        self._spec = spec
        self._calls = form_calls(draft, spec)
        self._text = {"text": form_text(draft)}
        if not self._calls and spec.tool_choice is ToolChoice.REQUIRED:
            self._calls = [FormCall(next(iter(spec.functions)))]
        self._box = ui.element("div").style("width: 100%; margin-top: 18px")

    def draw(self) -> None:
        """Show the calls as they stand now."""
        self._box.clear()
        with self._box:
            for number, call in enumerate(self._calls):
                with ui.element("div").classes("card"):
                    self._call(number, call)
            if not self._calls:
                self._function(0, NO_CALL)
                ui.textarea("The answer as it should be").bind_value(self._text, "text").props(
                    "outlined autogrow"
                ).style("width: 100%")
            elif self._spec.calls_per_answer is not CallsPerAnswer.ONE:
                ui.button("Another call", on_click=self._add).props("flat no-caps")

    def answer(self) -> str:
        """Return what was filled in, as one text. Raises InvalidMessage that names what is missing or wrong."""
        return answer_of_form(self._calls, self._text["text"], self._spec)

    def _call(self, number: int, call: FormCall) -> None:
        self._function(number, call.function)
        for asked in inputs_of(self._spec.functions[call.function]):
            call.values.setdefault(asked.name, "")
            name = asked.name if asked.required else f"{asked.name} (may be empty)"
            if asked.choices:
                options = ["", *asked.choices]
                if call.values[asked.name] not in options:
                    call.values[asked.name] = ""
                entry: ui.select | ui.textarea = ui.select(options, label=name)
            else:
                entry = ui.textarea(name).props("autogrow rows=1")  # A browser's input takes the ends of lines out.
            entry.bind_value(call.values, asked.name).props(f'outlined dense hint="{_attribute(asked.hint)}"')
            entry.style("width: 100%; margin-top: 6px")

    def _function(self, number: int, chosen: str) -> None:
        names = list(self._spec.functions)
        if self._spec.tool_choice is ToolChoice.AUTO or len(self._calls) > 1:
            names.append(NO_CALL)
        choice = ui.select(names, value=chosen, label="Function", on_change=lambda event: self._choose(number, event))
        choice.props("outlined").style("width: 100%")

    def _choose(self, number: int, event: object) -> None:
        """Arguments of the former function that the new one has, too, stay."""
        name = str(getattr(event, "value", ""))
        if name == NO_CALL:
            del self._calls[number]
        elif number < len(self._calls):
            known = {asked.name for asked in inputs_of(self._spec.functions[name])}
            values = {key: value for key, value in self._calls[number].values.items() if key in known}
            self._calls[number] = FormCall(name, values)
        else:
            self._calls.append(FormCall(name))
        self.draw()

    def _add(self) -> None:
        self._calls.append(FormCall(next(iter(self._spec.functions))))
        self.draw()


def _attribute(text: str) -> str:
    """A text inside the quotes of an attribute."""
    return text.replace('"', "'").replace("\\", "")
