"""Valid identity numbers of many countries are found and get valid surrogates; invalid ones are left alone."""

from __future__ import annotations

import pytest

from shared.privacy.redaction import Redactor, Rules
from shared.privacy.redaction.detect.identifiers import find_national_ids

PATTERNS = Rules(names=False)
# All are from the authorities' or python-stdnum's examples, or were computed.
VALID = {
    "Belgium": "85.07.30-033.28", "Finland": "131052-308T", "Switzerland": "756.9217.0769.85",
    "France": "2 69 05 49 588 157 80", "Sweden": "811218-9876", "Norway": "29029600013", "Germany": "86095742719",
    "Brazil": "111.444.777-35", "Turkey": "10000000146", "China": "11010519491231002X", "Korea": "900101-1234567",
    "South Africa": "8001015009087", "Romania": "1630615123457", "Czechia": "736028/5163", "Chile": "12.345.678-5",
    "Argentina": "20-12345678-6", "Thailand": "1-1017-00230-70-8", "India": "2341 2341 2346", "Spain": "12345678Z",
    "Mexico": "LOPM910814MDFPRR05", "Ireland": "1234567T", "Singapore": "S1234567D", "Italy": "RSSMRA85T10A562S",
    "Canada": "046 454 286", "Australia": "2123 45670 1", "England": "943 476 5919",
}  # fmt: skip
# One character off, or not a date.
INVALID = [
    "85.07.30-033.29", "131052-308U", "756.9217.0769.84", "811218-9875", "29029600014", "86095742718", "10000000147",
    "110105194912310021", "901301-1234567", "8001015009086", "1630615123458", "736028/5164", "12.345.678-6",
    "20-12345678-7", "2341 2341 2347", "12345678A", "S1234567A", "046 454 287", "2123 45671 1",
]  # fmt: skip


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(b"k" * 32)


@pytest.mark.parametrize("number", VALID.values(), ids=VALID)
def test_a_valid_number_is_found_and_its_surrogate_has_its_shape(redactor: Redactor, number: str) -> None:
    (redacted,) = redactor.redact([f"It says {number}, and that is all."], PATTERNS)
    surrogate = redacted.text.removeprefix("It says ").removesuffix(", and that is all.")
    assert redacted.kinds == {"id": 1}
    assert surrogate != number
    assert [c if not c.isalnum() else "" for c in surrogate] == [c if not c.isalnum() else "" for c in number]


@pytest.mark.parametrize("number", INVALID)
def test_an_invalid_number_is_not_found(number: str) -> None:
    assert list(find_national_ids(f"It says {number}, and that is all.")) == []


@pytest.mark.parametrize("text", ["Order 10000000146", "tracking no 29029600013", "invoice #86095742719"])
def test_plain_digits_behind_an_order_are_not_found(text: str) -> None:
    assert list(find_national_ids(text)) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("PESEL: 44051401359", "44051401359"),
        ("Mijn BSN is 123456782.", "123456782"),
        ("CPR-nr. 070761-4285", "070761-4285"),
        ("TFN declaration: TFN 123 456 782", "123 456 782"),
        ("Mein Reisepass C01X00T47 ist weg", "C01X00T47"),
        ("Passport received for somebody in the other office: no. K12903478", "K12903478"),
        ("mon numéro de sécu 1234567890", "1234567890"),
    ],
)
def test_a_number_with_a_weak_checksum_is_found_behind_its_label(redactor: Redactor, text: str, number: str) -> None:
    (redacted,) = redactor.redact([text], PATTERNS)
    assert number not in redacted.text
    assert redacted.kinds == {"id": 1}


@pytest.mark.parametrize("text", ["My passport expires in 2027.", "The parcel weighs 123456782 grams"])
def test_a_year_behind_a_label_and_a_number_without_one_are_not_found(redactor: Redactor, text: str) -> None:
    assert redactor.redact([text], PATTERNS)[0].count == 0


def test_nine_digits_are_an_ssn_if_the_text_mentions_one(redactor: Redactor) -> None:
    first, second = redactor.redact(
        ["The SSN on the form is not the one in the other system, which is 536221874.", "It weighs 536221874 g"],
        PATTERNS,
    )
    assert first.kinds == {"ssn": 1}
    assert second.count == 0


def test_a_label_does_not_claim_the_iban_behind_it(redactor: Redactor) -> None:
    text = "personnummer not needed, pay to NO93 8601 1117 947 450 kr"
    assert [text[s.start : s.end] for s in redactor.find([text], PATTERNS)[0]] == ["NO93 8601 1117 947"]
