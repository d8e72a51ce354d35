"""Personal data that came past redaction is replaced in every text of a correction; surrogates are known and stay."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.conversation import Answer, Call, Message, Part, Role, ToolCall
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.personal_data import PersonalData, PersonalDataPass, rules_id
from services.dataset_builder.building.votes import UserCorrection
from services.dataset_builder.inspection.gate import Inspection
from services.dataset_builder.inspection.row_gates import NoPersonalData
from services.dataset_builder.pipeline import Build, Dataset
from shared.privacy.redaction import Redactor, Rules

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
ALL = Rules()
NOTHING_BUILT = Build(Dataset((), (), ()))
SPEC = TaskSpec(name="replies", kind=TaskKind.GENERATION, system_prompt="")
PROMPT = "Reply as Maria Gonzalez of Acme would."
SYSTEM = Message(role=Role.SYSTEM, content=PROMPT)
PLANTED = {
    "email": "j.whitaker84@gmail.com",
    "card": "4539 1488 0343 6467",
    "iban": "GB29 NWBK 6016 1331 9268 19",
    "phone": "+44 7700 123456",
    "person": "John Whitaker",
}
SENTENCES = {
    "email": "Please write to {}.",
    "card": "My card number is {}.",
    "iban": "Transfer it to IBAN {} please.",
    "phone": "Call me on {}.",
    "person": "My name is {}.",
}


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(b"k" * 32)


def word(
    *messages: Message,
    label: str | None = "It is on its way.",
    answers: tuple[Answer, ...] = (Answer(text="No."),),
    surrogates: tuple[str, ...] = (),
    of_label: tuple[str, ...] = (),
) -> CorrectionSubmitted:
    return CorrectionSubmitted(
        task="replies", task_revision="1", correction_id="c1", request_id="r1", prediction_id="p1", reviewer="ana",
        purpose=Purpose.AUDIT, call=Call(messages=(SYSTEM, *messages), surrogates=surrogates), answers=answers,
        label=label, preference="a" if label is None else None, surrogates=of_label, occurred_at=NOON,
    )  # fmt: skip


def user(text: str) -> Message:
    return Message(role=Role.USER, content=text)


def passed(
    redactor: Redactor, *words: CorrectionSubmitted, rules: Rules = ALL
) -> tuple[list[CorrectionSubmitted], PersonalData]:
    return PersonalDataPass(redactor, rules, {PROMPT, "Jordan Miller"}).clean(words)


@pytest.mark.parametrize("forms", [True, False])
def test_personal_data_in_a_form_is_replaced_where_the_form_becomes_part_of_a_version(
    redactor: Redactor, forms: bool
) -> None:
    schema = {"type": "object", "properties": {"to": {"enum": [PLANTED["email"]]}}}
    asked = word(user("To whom?"))
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    asked = asked.model_copy(update={"call": asked.call.model_copy(update={"response_format": form})})
    search = PersonalDataPass(redactor, ALL, {PROMPT}, forms=forms)
    (clean,), found = search.clean([asked])
    assert (PLANTED["email"] in clean.model_dump_json()) is not forms
    assert (found.kinds, found.left) == ({"email": 1} if forms else {}, 0)
    if forms:
        (reply,) = clean.call.response_format["json_schema"]["schema"]["properties"]["to"]["enum"]  # type: ignore
        assert "@" in reply


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("place", ["message", "part", "earlier answer", "tool argument", "tool result", "label"])
def test_planted_personal_data_is_replaced_and_counted_wherever_it_stands(
    redactor: Redactor, kind: str, place: str
) -> None:
    text = SENTENCES[kind].format(PLANTED[kind])
    arguments = json.dumps({"note": text, "order": 5})
    asked = {
        "message": (user(text),),
        "part": (Message(role=Role.USER, content=(Part(type="text", text=text),)),),
        "earlier answer": (user("Hi"), Message(role=Role.ASSISTANT, content=text), user("and?")),
        "tool argument": (
            user("Hi"),
            Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="f", arguments=arguments),)),
        ),
        "tool result": (user("Hi"), Message(role=Role.TOOL, content=arguments)),
        "label": (user("Hi"),),
    }[place]
    (clean,), found = passed(redactor, word(*asked, label=text if place == "label" else "Fine."))
    assert PLANTED[kind] not in str((clean.call.messages, clean.label))
    assert (found.changed, found.left) == (1, 0)
    assert found.kinds[kind] >= 1
    assert NoPersonalData().measure(Inspection(NOTHING_BUILT, SPEC, {}, found)).passed


def test_arguments_and_answers_in_json_stay_json(redactor: Redactor) -> None:
    text = json.dumps({"to": PLANTED["email"], "phone": 447700123456, "note": 'said "John Whitaker"'})
    call = ToolCall(name="send", arguments=text, id="c")
    (clean,), _ = passed(
        redactor, word(user("My name is John Whitaker."), Message(role=Role.ASSISTANT, tool_calls=(call,)), label=text)
    )
    assert clean.label is not None
    for rewritten in (clean.call.messages[2].tool_calls[0].arguments, clean.label):
        value = json.loads(rewritten)
        assert set(value) == {"to", "phone", "note"}
        assert value["to"].endswith(("@example.com", "@example.net", "@example.org"))
        assert isinstance(value["phone"], int)
        assert value["phone"] != 447700123456


def test_surrogates_that_the_events_list_stay_and_are_not_counted(redactor: Redactor) -> None:
    texts = [SENTENCES[kind].format(value) for kind, value in PLANTED.items()]
    redacted = redactor.redact(texts, Rules())
    surrogates = tuple(s for result in redacted for s in result.surrogates)
    asked = word(
        *(user(result.text) for result in redacted), label=f"Dear {surrogates[-1]}, done.", surrogates=surrogates
    )
    (same,), found = passed(redactor, asked)
    assert same == asked
    assert (found.changed, dict(found.kinds)) == (0, {})


def test_personal_data_beside_surrogates_is_found(redactor: Redactor) -> None:
    (once,) = redactor.redact([SENTENCES["person"].format(PLANTED["person"])], Rules())
    asked = word(user(f"{once.text} Please write to {PLANTED['email']}."), surrogates=once.surrogates)
    (clean,), found = passed(redactor, asked)
    assert once.surrogates[0] in clean.call.messages[1].text
    assert PLANTED["email"] not in clean.call.messages[1].text
    assert dict(found.kinds) == {"email": 1}


def test_the_same_person_has_the_same_surrogate_as_in_the_gateway(redactor: Redactor) -> None:
    (at_the_gateway,) = redactor.redact(["My name is John Whitaker."], Rules())
    (clean,), _ = passed(redactor, word(user("My name is John Whitaker.")))
    assert clean.call.messages[1].text == at_the_gateway.text


def test_escaped_characters_hide_nothing(redactor: Redactor) -> None:
    arguments = json.dumps({"note": "My name is Jürgen Müller."})
    assert "\\u00fc" in arguments
    (clean,), found = passed(
        redactor, word(user("Hi"), Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="f", arguments=arguments),)))
    )
    assert "Müller" not in json.loads(clean.call.messages[2].tool_calls[0].arguments)["note"]
    assert found.changed == 1


def test_a_label_that_repeats_a_tool_call_still_repeats_it(redactor: Redactor) -> None:
    call = ToolCall(name="send", arguments=json.dumps({"to": PLANTED["email"]}), id="c9")
    said = Answer(tool_calls=(call,))
    (clean,), _ = passed(redactor, word(user("Hi"), label=said.plain, answers=(said,)))
    assert clean.label == clean.answers[0].plain
    assert PLANTED["email"] not in clean.label
    assert clean.answers[0].tool_calls[0].id == "c9"


def test_a_label_that_repeats_the_answer_still_repeats_it(redactor: Redactor) -> None:
    """What is known of the answer, such as that it was cut, is known of the label only as long as the two are equal."""
    said = SENTENCES["email"].format(PLANTED["email"])
    (clean,), _ = passed(redactor, word(user("Hi"), label=said, answers=(Answer(text=said),)))
    assert clean.label == clean.answers[0].plain
    assert PLANTED["email"] not in clean.label


def test_the_tasks_own_prompt_and_labels_are_nobodys(redactor: Redactor) -> None:
    asked = word(user("Hello there"), label="Jordan Miller", answers=(Answer(text="Jordan Miller"),))
    (same,), found = passed(redactor, asked)
    assert same == asked
    assert found.changed == 0


def test_what_a_user_wrote_is_searched_as_well(redactor: Redactor) -> None:
    asked = word(user("Hi"))
    wrote = UserCorrection(
        task="replies", task_revision="1", correction_id="f1", prediction_id="p1", occurred_at=NOON, call=asked.call,
        answers=asked.answers, label=SENTENCES["card"].format(PLANTED["card"]), author_hash=None, user_hash=None,
        predicted_at=NOON,
    )  # fmt: skip
    (clean,), found = PersonalDataPass(redactor, Rules(), {PROMPT}).clean([wrote])
    assert PLANTED["card"] not in clean.label
    assert dict(found.kinds) == {"card": 1}
    once = redactor.redact([wrote.label], Rules())[0]
    redacted = wrote.model_copy(update={"label": once.text, "surrogates": once.surrogates})
    assert PersonalDataPass(redactor, Rules(), {PROMPT}).clean([redacted])[0] == [redacted]


def test_a_task_without_redaction_is_left_alone(redactor: Redactor) -> None:
    asked = word(user(SENTENCES["email"].format(PLANTED["email"])))
    assert passed(redactor, asked, rules=Rules(enabled=False))[0] == [asked]


def test_the_answers_of_a_pair_are_searched_too_unless_nobody_could_tell(redactor: Redactor) -> None:
    mail = SENTENCES["email"].format(PLANTED["email"])
    asked = word(user(mail), label=None, answers=(Answer(text=mail), Answer(text="No.")))
    (clean,), found = passed(redactor, asked)
    assert PLANTED["email"] not in clean.model_dump_json()
    assert (clean.label, clean.preference, found.changed) == (None, "a", 1)
    unsure = asked.model_copy(update={"preference": "cannot_tell"})
    assert passed(redactor, unsure) == ([unsure], PersonalData())


def test_what_has_no_personal_data_is_named_so_that_no_later_build_looks_at_it(redactor: Redactor) -> None:
    asked = word(user("Where is my card?"))
    assert passed(redactor, asked) == ([asked], PersonalData(clear=("c1",)))


def test_what_was_replaced_is_not_clear_for_it_is_stored_as_it_came(redactor: Redactor) -> None:
    asked = word(user(SENTENCES["email"].format(PLANTED["email"])))
    assert passed(redactor, asked)[1].clear == ()


def test_another_pattern_is_another_search() -> None:
    assert rules_id(Rules()) == rules_id(Rules())
    assert rules_id(Rules()) != rules_id(Rules(patterns=(("parcel", r"P-\d{6}"),)))
    assert rules_id(Rules()) != rules_id(Rules(), forms=False), "what a form says was not looked at"


class Stubborn(Redactor):
    """Finds something in what it wrote itself, each time."""

    def redact(self, texts: Any, rules: Rules, already_redacted: Any = ()) -> Any:
        return super().redact(texts, rules)


def test_a_correction_that_cannot_be_cleared_fails_the_gate_and_is_counted() -> None:
    _, found = passed(Stubborn(b"k" * 32), word(user("My name is John Whitaker.")))
    gate = NoPersonalData().measure(Inspection(NOTHING_BUILT, SPEC, {}, found))
    assert not gate.passed
    assert gate.measured == 1
    assert found.clear == ()
