"""What is redacted, what the surrogates are like, and that no text can break or stall the redactor."""

from __future__ import annotations

import gc
import re
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.task_settings import RedactionSettings
from shared.errors import ConfigurationError
from shared.privacy.redaction import Redacted, Redactor, Rules
from shared.privacy.redaction.data import language_model
from shared.privacy.redaction.data.checksums import card_network, is_iban_valid, is_luhn_valid
from shared.privacy.redaction.replace.surrogates import Surrogates
from shared.privacy.redaction.spans import TextSpan, without_overlaps
from tests.waiting import PATIENCE_SECONDS

KEY = b"k" * 32
ALL = Rules()
PATTERNS = Rules(names=False)


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(KEY)


def redact(redactor: Redactor, text: str, rules: Rules = ALL) -> Redacted:
    return redactor.redact([text], rules)[0]


def digits(text: str) -> str:
    return re.sub(r"\D", "", text)


@pytest.mark.parametrize(
    ("text", "secret", "kind"),
    [
        ("My name is Maria Gonzalez and it is late.", "Maria Gonzalez", "person"),
        ("i'm tom baker and my account is locked", "tom baker", "person"),
        ("Mail me at j.doe+x@example.com please", "j.doe+x@example.com", "email"),
        ("It bounced: ops@db01.corp", "ops@db01.corp", "email"),
        ("cc root@printer.local", "root@printer.local", "email"),
        ("Call +44 7700 900123 today", "+44 7700 900123", "phone"),
        ("call me: (212) 555-0187", "(212) 555-0187", "phone"),
        ("Card 4111 1111 1111 1111 declined", "4111 1111 1111 1111", "card"),
        ("refund to GB29 NWBK 6016 1331 9268 19", "GB29 NWBK 6016 1331 9268 19", "iban"),
        ("My SSN is 536-22-8741", "536-22-8741", "ssn"),
        ("NHS number 943 476 5919", "943 476 5919", "id"),
        ("NI number QQ123456C", "QQ123456C", "id"),
        ("My DNI is 12345678Z", "12345678Z", "id"),
        ("from 203.0.113.57 at noon", "203.0.113.57", "ip"),
        ("from 2001:db8:85a3::8a2e:370:7334 at noon", "2001:db8:85a3::8a2e:370:7334", "ip"),
        ("born on 14/03/1987", "14/03/1987", "birth_date"),
        ("Account 55031877 is mine", "55031877", "account"),
        ("to 1BoatSLRHtKNngkdXEeobR76b53LETtpyT", "1BoatSLRHtKNngkdXEeobR76b53LETtpyT", "crypto"),
        ("I live at 742 Evergreen Terrace, Springfield, IL 62704", "742 Evergreen Terrace", "address"),
    ],
)
def test_each_kind_is_found_replaced_and_counted(redactor: Redactor, text: str, secret: str, kind: str) -> None:
    redacted = redact(redactor, text)
    assert secret not in redacted.text
    assert (redacted.count, dict(redacted.kinds)) == (1, {kind: 1})


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112", "9999 4111 1111 1111 1111", "ABC-4111111111111111", "12.4111111111111111",
        "GB29NWBK60161331926818", "Order 4471-20938 left on 12 March 2026",
        "version 1.2.3.4", "999.1.2.3", "Is there an ATM in Leeds?", "The Galaxy S24 Ultra gets hot", "", " \n\t",
    ],
)  # fmt: skip
def test_invalid_numbers_and_impersonal_words_stay(redactor: Redactor, text: str) -> None:
    assert redact(redactor, text) == Redacted(text, 0, {})


@pytest.mark.parametrize(
    ("text", "secret", "kind"),
    [
        ("my card is 5500 0000 0000 0004 12/26 123", "5500 0000 0000 0004", "card"),
        ("4111111111111111 12/26", "4111111111111111", "card"),
        ("amex 3782 822463 10005 12/26", "3782 822463 10005", "card"),
        ("card 4111 1111 1111 1111 2 weeks ago", "4111 1111 1111 1111", "card"),
        ("exp 12/26 4111111111111111", "4111111111111111", "card"),
        ("card 4111 1111 1111 1112 12/26", "4111 1111 1111 1112", "card"),
        ("2024-05-12 10:22:31 4111111111111111 declined", "4111111111111111", "card"),
        ("2024-05-12 4111 1111 1111 1111 declined", "4111 1111 1111 1111", "card"),
        ("12.05.2024 4111 1111 1111 1111 -20.00", "4111 1111 1111 1111", "card"),
        ("paid 100 4111111111111111", "4111111111111111", "card"),
        ("Cardno.4111111111111111", "4111111111111111", "card"),
        ("card -4111111111111111", "4111111111111111", "card"),
        ("it is 4111  1111  1111  1111", "4111  1111  1111  1111", "card"),
        ("row\t4111\t1111\t1111\t1111\t12/26", "4111\t1111\t1111\t1111", "card"),
        ("PO 4711 DE89370400440532013000", "DE89370400440532013000", "iban"),
        ("to De89 3704 0044 0532 0130 00 today", "De89 3704 0044 0532 0130 00", "iban"),
        ("to Gb29nwbk60161331926819.", "Gb29nwbk60161331926819", "iban"),
        ("to DE89.3704.0044.0532.0130.00", "DE89.3704.0044.0532.0130.00", "iban"),
        ("to DE89  3704  0044  0532  0130  00", "DE89  3704  0044  0532  0130  00", "iban"),
        ("ref AB12 DE89 3704 0044 0532 0130 00", "DE89 3704 0044 0532 0130 00", "iban"),
        ("ID 12345 NL91 ABNA 0417 1643 00", "NL91 ABNA 0417 1643 00", "iban"),
        ("https://shop.example/reset?user=anna@example.com&lang=de", "anna@example.com", "email"),
        ("login=anna@example.com ok", "anna@example.com", "email"),
        ("write to jane @ acme.ai today", "jane @ acme.ai", "email"),
        ("at omar@ mail.ae now", "omar@ mail.ae", "email"),
    ],
)
def test_a_number_or_an_address_beside_another_one_is_found_alone(
    redactor: Redactor, text: str, secret: str, kind: str
) -> None:
    redacted = redact(redactor, text, PATTERNS)
    assert dict(redacted.kinds) == {kind: 1}
    before, _, after = text.partition(secret)
    assert redacted.text.startswith(before) and redacted.text.endswith(after) and secret not in redacted.text


def test_two_phone_numbers_with_a_slash_between_are_found(redactor: Redactor) -> None:
    assert not re.search(r"0475|0476", redact(redactor, "Tel 0475123456/0476 12 34 56", PATTERNS).text[8:])


def test_two_accounts_with_a_blank_between_are_two(redactor: Redactor) -> None:
    redacted = redact(redactor, "DE89 3704 0044 0532 0130 00 NL91 ABNA 0417 1643 00", PATTERNS)
    assert dict(redacted.kinds) == {"iban": 2}


@pytest.mark.parametrize(
    "number",
    ["06.12.34.56.78", "+33 6.12.34.56.78", "+33 (0)6.12.34.56.78", "+32 475/12.34.56", "+41.44.668.18.00",
     "0475/12.34.56", "+7 495 1234-56-78"],
)  # fmt: skip
def test_a_phone_number_in_pairs_is_no_date(redactor: Redactor, number: str) -> None:
    assert dict(redact(redactor, f"Tel: {number}", PATTERNS).kinds) == {"phone": 1}


@pytest.mark.parametrize(
    "text",
    [
        "call me 12.05.24", "+2024-01-15 10:00:00 INFO", "Balance +50 01/02/2024", "call log 2024-05-17-10-30-00",
        "release number 10.12.05.24", "x @ model.in.weight", "y @ w.to(device)", "closed 01/03/24-05/03/24",
        "from 12/03/2024 14", "see 01.02.03.04", "y = x @ self.weight; z = a[::2]", "y[1::2]", "y[1024::2]",
        "db::add(x)",
        "private @javax.annotation.Nullable",
    ],
)  # fmt: skip
def test_dates_and_code_stay(redactor: Redactor, text: str) -> None:
    assert redact(redactor, text, PATTERNS) == Redacted(text, 0, {})


@pytest.mark.parametrize("text", ["client ::ffff:203.0.113.9 connected", "64:ff9b::192.0.2.33"])
def test_an_ipv4_address_in_one_of_ipv6_is_one_address(redactor: Redactor, text: str) -> None:
    assert dict(redact(redactor, text, PATTERNS).kinds) == {"ip": 1}


@pytest.mark.parametrize("kind", ["phone", "card", "iban", "ssn", "id", "account", "ip", "birth_date", "crypto",
                                  "email", "person", "town", "address", "own"])  # fmt: skip
@pytest.mark.parametrize("text", ["4111 1111 1111 1111", "GB29 NWBK 6016 1331", "john@acme.com", "::ffff:127.0.0.1",
                                  "12 March 1980", "bc1qxyz", "+44 7700 900123"])  # fmt: skip
def test_every_part_of_a_finding_has_a_surrogate(kind: str, text: str) -> None:
    """A heavier finding leaves any part of another one, and a crash here would lose the prediction."""
    surrogates = Surrogates(KEY)
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            part = text[start:end]
            assert surrogates.of(kind, part) != part or sum(map(str.isalnum, part)) < 3  # Fewer are left in clear.


def test_a_part_of_a_word_of_a_redacted_text_is_no_surrogate(redactor: Redactor) -> None:
    for written in (
        '{"mail":"Regards,\\nsee 415-555-0123"}',
        "_415-555-0123_",
        "Tel415-555-0123"[:0] + "(415-555-0123)",
    ):
        assert redactor.redact(["call 415-555-0123"], PATTERNS, [written])[0].count == 0
    said = ["ticket 415-555-01234"]
    assert redactor.redact(["call 415-555-0123"], PATTERNS, said)[0].count == 1
    assert redactor.redact(["call 415-555-0123"], PATTERNS, ["He called 415-555-0123, twice"])[0].count == 0


def test_a_birth_date_is_told_from_other_dates_behind_it(redactor: Redactor) -> None:
    text = "dob 01/01/1980, appointment on 14/06/2024 and on 15/06/2024; his son born 02/02/2012"
    redacted = redact(redactor, text, PATTERNS).text
    assert "14/06/2024 and on 15/06/2024" in redacted and "1980" not in redacted and "02/02/2012" not in redacted


def test_a_person_has_the_same_surrogate_in_every_text(redactor: Redactor) -> None:
    first, second = redactor.redact(["I am Maria Gonzalez. Maria is right.", "Ask Maria Gonzalez"], ALL)
    surrogate = re.fullmatch(r"I am (\w+) (\w+)\. (\w+) is right\.", first.text)
    assert surrogate is not None
    assert surrogate[1] == surrogate[3] != "Maria"
    assert second.text == f"Ask {surrogate[1]} {surrogate[2]}"
    assert redact(Redactor(KEY), "Ask Maria Gonzalez").text == second.text  # As in another process, on another day.


@pytest.mark.parametrize(
    ("text", "surrogate"),
    [
        (
            "My account is 55031877. Is 55031877 closed? 550318771 and 1.55031877 are not mine.",
            r"My account is (?!55031877)(\d{8})\. Is \1 closed\? 550318771 and 1\.55031877 are not mine\.",
        ),
        (
            "call me at 917 555 0163. Again: 9175550163!",
            r"call me at (\d{3}) 555 (?!0163)(\d{4})\. Again: \1(?:555)\2!",
        ),
        ("Passport C01X00T47, not 2C01X00T47 but C01X00T47", r"Passport (?!C01)(\w{9}), not 2C01X00T47 but \1"),
    ],
)
def test_a_number_is_found_wherever_its_text_says_it_again(redactor: Redactor, text: str, surrogate: str) -> None:
    redacted = redact(redactor, text, PATTERNS)
    assert re.fullmatch(surrogate, redacted.text)
    assert redacted.count == 2


def test_another_key_gives_other_surrogates() -> None:
    text = "Card 4111 1111 1111 1111, mail maria.gonzalez@example.com, call +44 7700 900123"
    assert redact(Redactor(b"a" * 32), text, PATTERNS).text != redact(Redactor(b"b" * 32), text, PATTERNS).text
    with pytest.raises(ValueError, match="at least 16"):
        Redactor(b"short")


@given(st.integers(0, 10**11 - 1))
def test_a_card_becomes_a_card_of_the_same_network_and_format(body: int) -> None:
    number = f"4000{body:011d}"
    number += next(c for c in "0123456789" if is_luhn_valid(number + c))
    text = " ".join(number[i : i + 4] for i in range(0, 16, 4))
    surrogate = redact(Redactor(KEY), text, PATTERNS).text
    assert surrogate != text
    assert [len(group) for group in surrogate.split()] == [4, 4, 4, 4]
    assert card_network(digits(surrogate)) == "visa"


def test_the_surrogate_of_an_iban_has_its_country_and_is_of_no_account(redactor: Redactor) -> None:
    surrogate = redact(redactor, "DE89 3704 0044 0532 0130 00").text
    assert (surrogate[:2], len(surrogate), is_iban_valid(surrogate)) == ("DE", 27, False)


@pytest.mark.parametrize(
    ("ip", "networks"),
    [("8.8.4.4", "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24"), ("2a00:1450::1", "2001:db8::/32")],
)
def test_an_ip_address_becomes_one_reserved_for_documentation(redactor: Redactor, ip: str, networks: str) -> None:
    surrogate = ip_address(redact(redactor, ip).text)
    assert any(surrogate in ip_network(network) for network in networks.split())


def test_two_spellings_of_a_phone_number_have_the_same_surrogate(redactor: Redactor) -> None:
    a, b = redactor.redact(["call +1 212-555-0187", "call +1 (212) 555 0187"], PATTERNS)
    assert digits(a.text) == digits(b.text) != "12125550187"


def test_a_surrogate_from_an_already_redacted_text_stays(redactor: Redactor) -> None:
    asked = redact(redactor, "I am Maria Gonzalez, mail maria@acme.internal")
    name = asked.text.split()[2]
    (reply,) = redactor.redact([f"Dear {name}, thank you. I told Ivan."], ALL, already_redacted=[asked.text])
    assert reply.text.startswith(f"Dear {name}, thank you. I told ")
    assert (reply.count, "Ivan" in reply.text) == (1, False)


def test_redacting_twice_replaces_surrogates_and_never_restores_the_original(redactor: Redactor) -> None:
    """Surrogates look real, so nothing can recognise them unless the caller passes `already_redacted`."""
    text = "I am Maria Gonzalez, mail maria@acme.internal"
    once = redact(redactor, text)
    twice = redact(redactor, once.text)
    assert once.count == twice.count
    assert not re.search("Maria|Gonzalez|acme", once.text + twice.text, re.I)
    (unchanged,) = redactor.redact([once.text], ALL, already_redacted=[once.text])
    assert unchanged == Redacted(once.text, 0, {})


def test_a_task_can_turn_off_redaction_or_names_and_add_patterns(redactor: Redactor) -> None:
    text = "I am Maria Gonzalez, badge EMP-1234, card 4111 1111 1111 1111"
    assert redact(redactor, text, Rules.of(RedactionSettings(enabled=False))) == Redacted(text, 0, {})
    assert "Maria Gonzalez, badge EMP-1234" in redact(redactor, text, PATTERNS).text
    own = RedactionSettings.model_validate({"patterns": [{"name": "badge", "regex": r"EMP-\d{4}"}]})
    redacted = redact(redactor, text, Rules.of(own))
    assert dict(redacted.kinds) == {"person": 1, "card": 1, "badge": 1}
    assert re.search(r"badge [A-Z]{3}-\d{4},", redacted.text)
    assert "EMP-1234" not in redacted.text


def test_an_invalid_pattern_is_named_in_the_error(redactor: Redactor) -> None:
    with pytest.raises(ConfigurationError, match="redaction pattern badge: not a regular expression"):
        redact(redactor, "x", Rules(patterns=(("badge", "(["),)))


def test_an_endlessly_backtracking_pattern_is_stopped_and_its_text_is_redacted(redactor: Redactor) -> None:
    text = "a" * 3_000 + "!"
    started = time.perf_counter()
    redacted = redact(redactor, text, Rules(names=False, patterns=(("slow", "(a|aa)+$"),)))
    assert time.perf_counter() - started < PATIENCE_SECONDS  # Unstopped it takes longer than the universe is old.
    assert redacted.count >= 1
    assert "a" * 100 not in redacted.text


def test_the_time_grows_with_the_number_of_dates_behind_a_birth_date(redactor: Redactor) -> None:
    """A medical record or a statement has hundreds: each was looked at together with all before it."""

    def seconds(dates: int) -> float:
        started = time.process_time()
        redact(redactor, "dob 01/01/1980 " + "seen 14/06/2024\n" * dates, PATTERNS)
        return time.process_time() - started

    seconds(10)
    assert seconds(1_200) < 8 * min(seconds(300), seconds(300)) + 0.3


@pytest.mark.parametrize(
    "unit",
    ["\n", "1 ", "Aa ", "a@", "Anna and ", "name ", "'", "ab:", "1 Abc Street, ", "A. ", "1.2.3.4 ",
     "born 01/01/1980 on 2/3/2024\n"],
)  # fmt: skip
def test_the_time_grows_with_the_length_of_a_text(redactor: Redactor, unit: str) -> None:
    """Twice the length takes about twice the CPU seconds; wall time would depend on the machine's load."""

    def seconds(size: int) -> float:
        started = time.process_time()
        redact(redactor, unit * (size // len(unit)))
        return time.process_time() - started

    redact(redactor, "Does it work, Maria?")
    gc.disable()  # It would scan the objects of all earlier tests.
    try:
        limit = 8 * seconds(8_000) + 0.5
        assert seconds(32_000) < limit or seconds(32_000) < limit, "twice"
    finally:
        gc.enable()


def test_both_ends_of_a_long_text_are_redacted(redactor: Redactor) -> None:
    text = "I am Maria Gonzalez. " + "The parcel is late. " * 2_500 + "Write to maria@acme.internal"
    redacted = redact(redactor, text)
    assert redacted.count == 2
    assert not re.search("Maria|acme", redacted.text)


@given(st.text(max_size=200))
@settings(max_examples=60)
def test_any_text_is_redacted_without_an_error_and_the_same_every_time(text: str) -> None:
    first = redact(Redactor(KEY), text, PATTERNS)
    assert first == redact(Redactor(KEY), text, PATTERNS)
    assert (first.text == text) == (first.count == 0)


@given(
    st.text(alphabet="ab ,c", min_size=12, max_size=40),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 3)), max_size=8),
)
def test_no_three_letters_of_overlapping_spans_stay_in_clear(text: str, found: list[tuple[int, int, int]]) -> None:
    spans = [TextSpan(min(a, b), max(a, b), f"kind{w}", w) for a, b, w in found if a != b]
    disjoint = without_overlaps(text, spans)
    assert all(a.end <= b.start for a, b in pairwise(disjoint))
    covered = {i for s in disjoint for i in range(s.start, s.end)}
    for span in spans:
        inside = range(span.start, min(span.end, len(text)))
        in_clear = "".join(" " if i in covered else text[i] for i in inside)
        assert all(len(run) < 3 for run in re.findall(r"\w+", in_clear))


def sentences(count: int) -> list[str]:
    """Each with words that no other text has."""
    return [f"Xan{n:05}ty Roe of Berlin wrote to qor{n:05}bel@example.org." for n in range(count)]


def test_the_language_model_does_not_remember_the_words_of_texts() -> None:
    language_model.entities(sentences(2))
    remembered = language_model._language().vocab.strings
    before = len(remembered)
    found = language_model.entities(sentences(80))
    assert len(remembered) == before
    assert sum(map(len, found)) > 100


def test_the_language_model_is_loaded_anew_before_its_numbers_of_words_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = language_model.entities(sentences(80))
    loaded = language_model._language()
    monkeypatch.setattr(language_model, "_MAX_WORDS", len(loaded.vocab) - 1)
    assert language_model.entities(sentences(80)) == first
    assert language_model._language() is not loaded


def test_two_threads_use_the_language_model_one_after_the_other() -> None:
    wanted = language_model.entities(sentences(50))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: language_model.entities(sentences(50)), range(4)))
    assert found == [wanted] * 4


def test_the_language_model_imports_no_other_packages_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(EntryPoint, "load", lambda entry_point: loaded.append(entry_point.name))
    language_model._language.__wrapped__()
    assert loaded == []
