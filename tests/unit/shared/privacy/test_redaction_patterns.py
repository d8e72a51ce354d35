"""Data of a fixed format in context: phones, spelled-out e-mail, versions, dates of birth, postal addresses."""

from __future__ import annotations

import pytest

from shared.privacy.redaction import Redactor, Rules

PATTERNS = Rules(names=False)


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(b"k" * 32)


def found(redactor: Redactor, text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in redactor.find([text], PATTERNS)[0]]


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("zelle me at 9175550163", "phone", "9175550163"),
        ("appelez le 9175550163", "phone", "9175550163"),
        ("from 0044 20 7946 0633", "phone", "0044 20 7946 0633"),
        ("GET /users?mail=j.doe%40example.org&x=1", "email", "j.doe%40example.org"),
        ("john dot carter at example dot com", "email", "john dot carter at example dot com"),
        ("write to j.doe @ example.org", "email", "j.doe @ example.org"),
        ("The server 8.8.8.8 got version 2 installed", "ip", "8.8.8.8"),
        ("install failed on 203.0.113.9", "ip", "203.0.113.9"),
        ("geb. 17.05.1947, wohnhaft", "birth_date", "17.05.1947"),
        ("née le 4 juillet 1990", "birth_date", "4 juillet 1990"),
        ("nato il 3 maggio 1971", "birth_date", "3 maggio 1971"),
        ("they asked for my dob twice, had it wrong in the system, and it is in fact 1974-02-03", "birth_date",
         "1974-02-03"),
        ("to Unit 9, Heron Yard, Bristol BS1 9XX please", "address", "Unit 9, Heron Yard, Bristol BS1 9XX"),
        ("Papatya Sokak No: 17/4, 34999 Kadıköy/İstanbul", "address", "Papatya Sokak No: 17/4, 34999 Kadıköy/İstanbul"),
        ("en Calle de los Olivos 41, 3.º B, 28999 Madrid", "address", "Calle de los Olivos 41, 3.º B, 28999 Madrid"),
        ("12 Long Row\nApt 6B\nDayton, OH 45402", "address", "12 Long Row\nApt 6B\nDayton, OH 45402"),
    ],
)  # fmt: skip
def test_personal_data_is_found_by_its_context(redactor: Redactor, text: str, kind: str, words: str) -> None:
    assert found(redactor, text) == [(kind, words)]


@pytest.mark.parametrize(
    "text",
    [
        "order number 4155550123",
        "SKU 0078-0511-20 is in stock",
        "Order 7731-4452-0098-1123 left",
        "do not install 4.2.0.9 on these boards",
        "Upgrade from 4.2.0.9 to 4.2.1.0 failed",
        "look at example dot pages in the dot notation",
        "ordered on 14/06/2024",
    ],
)
def test_other_data_is_not_found_because_of_its_context(redactor: Redactor, text: str) -> None:
    assert found(redactor, text) == []


def test_the_date_of_a_visit_behind_a_date_of_birth_stays(redactor: Redactor) -> None:
    assert found(redactor, "dob 12/03/1980, appointment on 14/06/2024") == [("birth_date", "12/03/1980")]


def test_a_month_is_replaced_by_one_of_its_language(redactor: Redactor) -> None:
    (redacted,) = redactor.redact(["née le 4 juillet 1990"], PATTERNS)
    months = "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split()  # noqa: SIM905
    assert redacted.text.split()[3] in months


def test_the_surrogate_of_an_email_in_a_url_keeps_its_encoding(redactor: Redactor) -> None:
    (redacted,) = redactor.redact(["?mail=j.doe%40acme.test&x=1"], PATTERNS)
    assert "%40example." in redacted.text
    assert redacted.text.endswith("&x=1")
