"""Forms of answers: of several labels a box for each; of calls, for each a function with its arguments as JSON, or a
text where no call is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from nicegui import ui

from schemas.tasks import TaskSpec
from schemas.tools import NO_CALL, CallsPerAnswer, ToolChoice
from services.console.domain import keys_for
from services.console.pages.layout import html, laid_out
from shared.answers import InvalidAnswer, answer_form
from shared.answers.label_set import listed_labels
from shared.errors import InvalidMessage
from shared.grading.tool_calls import split_calls


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


@dataclass
class FormCall:
    """A call as it stands in the form: a function, and its arguments as JSON."""

    function: str
    arguments: str = "{}"


class CallForm:
    """What a reviewer fills in. `answer` is valid, or says what is not."""

    def __init__(self, spec: TaskSpec, draft: str) -> None:
        self._spec = spec
        text, calls = split_calls(draft)
        self._text = {"text": text}
        self._calls = [FormCall(call.name, laid_out(call.arguments)) for call in calls if call.name in spec.functions]
        if not self._calls and spec.tool_choice is ToolChoice.REQUIRED:
            self._calls = [FormCall(next(iter(spec.functions)))]
        self._box = ui.element("div").style("width: 100%; margin-top: 18px")

    def draw(self) -> None:
        """Show the calls as they stand now."""
        self._box.clear()
        with self._box:
            for number, call in enumerate(self._calls):
                with ui.element("div").classes("card"):
                    self._function(number, call.function)
                    properties = self._spec.functions[call.function].parameters.get("properties")
                    names = ", ".join(properties) if isinstance(properties, dict) else ""
                    entry = ui.textarea(f"Arguments, as JSON: {names or 'none'}")
                    entry.bind_value(call, "arguments").props("outlined autogrow").style("width: 100%; margin-top: 6px")
            if not self._calls:
                self._function(0, NO_CALL)
                text = ui.textarea("The answer as it should be").bind_value(self._text, "text")
                text.props("outlined autogrow").style("width: 100%")
            elif self._spec.calls_per_answer is not CallsPerAnswer.ONE:
                ui.button("Another call", on_click=self._add).props("flat no-caps")

    def answer(self) -> str:
        """What was filled in, as one text in the spelling that is trained on.

        Raises InvalidMessage that names the function and the argument that is missing or wrong.
        """
        calls = [{"name": call.function, "arguments": call.arguments} for call in self._calls]
        try:
            return answer_form(self._spec).canonical(json.dumps(calls) if calls else self._text["text"])
        except InvalidAnswer as error:
            raise InvalidMessage(f"label: {error}", f"Answers of {self._spec.name} call its functions.") from error

    def _function(self, number: int, chosen: str) -> None:
        names = list(self._spec.functions)
        if self._spec.tool_choice is ToolChoice.AUTO or len(self._calls) > 1:
            names.append(NO_CALL)
        choice = ui.select(names, value=chosen, label="Function", on_change=lambda event: self._choose(number, event))
        choice.props("outlined").style("width: 100%")

    def _choose(self, number: int, event: object) -> None:
        name = str(getattr(event, "value", ""))
        if name == NO_CALL:
            del self._calls[number]
        elif number < len(self._calls):
            self._calls[number].function = name
        else:
            self._calls.append(FormCall(name))
        self.draw()

    def _add(self) -> None:
        self._calls.append(FormCall(next(iter(self._spec.functions))))
        self.draw()
