"""Data of a fixed format in context: phones, spelled-out e-mail, versions, dates of birth, postal addresses."""

from __future__ import annotations

import re

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
        ("ruf 0170 / 1234567 an", "phone", "0170 / 1234567"),
        ("Tel. (0170) / 123 45 67", "phone", "(0170) / 123 45 67"),
        ("+49 170 / 1234567", "phone", "+49 170 / 1234567"),
        ("+49 (0) 170 - 12 34 567", "phone", "+49 (0) 170 - 12 34 567"),
        ("GET /users?mail=j.doe%40example.org&x=1", "email", "j.doe%40example.org"),
        ("john dot carter at example dot com", "email", "john dot carter at example dot com"),
        ("write to j.doe @ example.org", "email", "j.doe @ example.org"),
        ("<a>jane.roe&#64;acme.test</a>", "email", "jane.roe&#64;acme.test"),
        ("roe&#x40;acme.test or so", "email", "roe&#x40;acme.test"),
        ("jane.roe&commat;acme.test", "email", "jane.roe&commat;acme.test"),
        ("reach jane.roe at gmail.com please", "email", "jane.roe at gmail.com"),
        ("jane_roe77 at yahoo.co.uk.", "email", "jane_roe77 at yahoo.co.uk"),
        ("my email address is janeroe at Web.de", "email", "janeroe at Web.de"),
        ("The server 8.8.8.8 got version 2 installed", "ip", "8.8.8.8"),
        ("install failed on 203.0.113.9", "ip", "203.0.113.9"),
        ("geb. 17.05.1947, wohnhaft", "birth_date", "17.05.1947"),
        ("née le 4 juillet 1990", "birth_date", "4 juillet 1990"),
        ("nato il 3 maggio 1971", "birth_date", "3 maggio 1971"),
        ("date of birth: 1980-03-12T00:00:00Z", "birth_date", "1980-03-12"),
        ('record: {"birthDate":"1980-03-12T00:00:00.000+01:00"}!', "birth_date", "1980-03-12"),
        ("dob=19800312", "birth_date", "19800312"),
        ("DOB: 12031980", "birth_date", "12031980"),
        ("geboren am 12. 3. 1980", "birth_date", "12. 3. 1980"),
        ("dob 12 / 03 / 1980", "birth_date", "12 / 03 / 1980"),
        ("född 12 augusti 1980", "birth_date", "12 augusti 1980"),
        ("født 12. maj 1980", "birth_date", "12. maj 1980"),
        ("urodzony 12 marca 1980", "birth_date", "12 marca 1980"),
        ("We moved to 5 Mill Run last week", "address", "5 Mill Run"),
        ("back at 12 Rose Path, Leeds", "address", "12 Rose Path, Leeds"),
        ("the number of my brother is 9175550163", "phone", "9175550163"),
        ("Konto 532013000 bei der Sparkasse", "account", "532013000"),
        ("meine Kontonummer lautet 532013000", "account", "532013000"),
        ("Kto.-Nr. 532013000", "account", "532013000"),
        ("mon numéro de compte : 12345678901", "account", "12345678901"),
        ("mi número de cuenta es 1234567890", "account", "1234567890"),
        ("conto corrente n. 1234567890", "account", "1234567890"),
        ("rekeningnummer 123456789", "account", "123456789"),
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
        "my Gmail account at gmail.com is locked, my email is at gmail.com, an email bounced at gmail.com",
        "user_id at live.com, index.html at me.com, OAuth2 at yahoo.com, e.g. at web.de",
        "ordered on 14/06/2024",
        "HTTP 502 Bad Gateway",
        "Section 2 Key Points, then a 7 Day Pass",
        "Error 12 Invalid Path in 1 Test Run",
        "mein Kontostand ist 1500000, das Konto hat 1500000",
        "il compte 1500000 abonnés",
        "the number of requests was 1234567",
        "number of rows: 1234567",
        "your account balance is 1500000",
        "app.run(host='0.0.0.0') and ping 127.0.0.1",
        "netmask 255.255.255.0 on the network",
        "seen 1980-03-12T00:00:00Z",
        "dob unknown, appointment 19800312",
        "Az. 012 / 2024 vom Mai",
        "01/2024 - 12/2024 and 01.2024 / 12.2024",
        "it moved by +1000 - 2000",
        "x = +5 - 10 - 2024",
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


@pytest.mark.parametrize(
    ("text", "surrogate"),
    [("dob=19800312", r"dob=(?:197[789]|198[123])(?:0[1-9]|1[0-2])(?:0[1-9]|1[0-2])"),
     ("dob=20121980", r"dob=(?:1[3-9]|2[0-8])(?:0[1-9]|1[0-2])(?:197[789]|198[123])")],
)  # fmt: skip
def test_a_date_of_birth_without_signs_becomes_another_date(redactor: Redactor, text: str, surrogate: str) -> None:
    assert re.fullmatch(surrogate, redactor.redact([text], PATTERNS)[0].text)


def test_the_surrogate_of_an_email_in_a_url_keeps_its_encoding(redactor: Redactor) -> None:
    (redacted,) = redactor.redact(["?mail=j.doe%40acme.test&x=1"], PATTERNS)
    assert "%40example." in redacted.text
    assert redacted.text.endswith("&x=1")


@pytest.mark.parametrize(
    ("text", "kind", "words", "becomes"),
    [
        ("IBAN: GB29\u202fNWBK\u202f6016\u202f1331\u202f9268\u202f19.", "iban", "GB29.*19", r"GB\d\d( \w{4}){4} \w\w"),
        ("card 4111\u00a01111\u00a01111\u00a01111 ok", "card", "4111.*1111", r"4\d{3}( \d{4}){3}"),
        ("card 4111\u20111111\u20111111\u20111111 ok", "card", "4111.*1111", r"4\d{3}(-\d{4}){3}"),
        ("card 4111\u200b1111\u200b1111\u200b1111 ok", "card", "4111.*1111", r"4\d{15}"),
        ("card \uff14\uff11\uff11\uff11 1111 1111 1111 ok", "card", "\uff14.*1111", r"4\d{3}( \d{4}){3}"),
        ("my ssn is 123\u201345\u20136789", "ssn", "123.*6789", r"9\d\d-\d\d-\d{4}"),
        ("\u202a+49\u202f170\u202f1234567\u202c is mine", "phone", r"\+49.*4567", r"\+49 \d{3} \d{7}"),
        ("write to j.doe@exa\u00admple.org", "email", "j.doe.*org", r"[\w.]+@example\.\w+"),
        ("write to j.doe\uff20example.org", "email", "j.doe.*org", r"[\w.]+@example\.\w+"),
        ("iban=DE89%203704%200044%200532%200130%2000&x=1", "iban", "DE89.*2000", r"DE\d\d(%20\d+){5}"),
        ("https://a.test/phone=%2B49%20170%201234567&x=%31", "phone", "%2B49.*4567", r"%2B49%20\d{3}%20\d{7}"),
        ("card=4111%2D1111%2D1111%2D1111&sure=100%25", "card", "4111.*1111", r"4\d{3}(-\d{4}){3}"),
        ("logged in from \u0661\u0669\u0668.51.100.7", "ip", r"\u0661.*\.7", r"[\d.]+"),
    ],
)
def test_blanks_hyphens_and_digits_of_other_spellings_hide_nothing(
    redactor: Redactor, text: str, kind: str, words: str, becomes: str
) -> None:
    ((found_kind, found_words),) = found(redactor, text)
    assert found_kind == kind
    assert re.fullmatch(words, found_words)
    assert re.fullmatch(re.sub(words, lambda _: becomes, text), redactor.redact([text], PATTERNS)[0].text)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("卡号4111111111111111已冻结", "card", "4111111111111111"),
        ("我的邮箱是j.doe@example.org谢谢", "email", "j.doe@example.org"),
        ("電話は+81 90-1234-5678です", "phone", "+81 90-1234-5678"),
        ("계좌는DE89370400440532013000로", "iban", "DE89370400440532013000"),
        ("身份证号11010519491231002X。", "id", "11010519491231002X"),
    ],
)
def test_data_is_found_alone_beside_letters_of_a_script_without_blanks(
    redactor: Redactor, text: str, kind: str, words: str
) -> None:
    assert found(redactor, text) == [(kind, words)]


def test_one_number_has_one_surrogate_however_it_is_written(redactor: Redactor) -> None:
    spellings = ["DE89 3704 0044 0532 0130 00", "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000"]
    plain, copied = redactor.redact(spellings, PATTERNS)
    assert plain.text == copied.text != spellings[0]


def test_a_name_with_a_soft_hyphen_is_found_and_what_is_invisible_elsewhere_stays(redactor: Redactor) -> None:
    text = "\ufeffMy name is Gu\u00adstavo Fernandez. Ship it to\u00admorrow."
    redacted = redactor.redact([text], Rules())[0].text
    assert redacted.startswith("\ufeffMy name is ")
    assert redacted.endswith(". Ship it to\u00admorrow.")
    assert "stavo" not in redacted
    assert "Fernandez" not in redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'Profile: {"phone_number": "9175550163", "date_of_birth": "1980-03-12", "account_number": 55031877}, help!',
            [("phone", "9175550163"), ("birth_date", "1980-03-12"), ("account", "55031877")],
        ),
        (
            'Profile: {"customerPhone": 9175550163, "nationalId": "12345678"}',
            [("phone", "9175550163"), ("id", "12345678")],
        ),
        (
            "<phoneNumber>9175550163</phoneNumber><DateOfBirth>12 March 1980</DateOfBirth>",
            [("phone", "9175550163"), ("birth_date", "12 March 1980")],
        ),
        ("login ok phone_number=9175550163 order_id=12345678 bytes_sent=1234567", [("phone", "9175550163")]),
        ("GET /pay?social_security_number=536228741&page_size=1000000", [("ssn", "536228741")]),
        (r"{\"homePhone\": \"9175550163\"}", [("phone", "9175550163")]),
    ],
)
def test_a_value_is_found_by_the_name_that_a_program_gave_it(
    redactor: Redactor, text: str, expected: list[tuple[str, str]]
) -> None:
    assert found(redactor, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "order_number: 4155550123", "phone_number_id=1234567890", '"account_created_at": 1700000000',
        "max_number = 1234567", "number_of_rows=1234567", "account_balance: 1234567", '"passport_expiry": "2027-05-12"',
        "documentVersion: 20240101", "call_count = 1234567", "def phone_number(self) -> int: return 1234567",
    ],
)  # fmt: skip
def test_other_values_with_a_name_of_several_words_stay(redactor: Redactor, text: str) -> None:
    assert found(redactor, text) == []


def test_a_customers_phone_is_a_phone_and_a_phone_order_is_an_order(redactor: Redactor) -> None:
    assert found(redactor, "customer phone: 9175550163") == [("phone", "9175550163")]
    assert found(redactor, "phone order number 4155550123, customer 4155550123") == []
