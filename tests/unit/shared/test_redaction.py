"""What leaves a text, what stands in its place, and what no text can do to the redactor."""

from __future__ import annotations

import gc
import re
import time
from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.tasks import RedactionSettings
from shared.errors import ConfigurationError
from shared.privacy.redaction import Redacted, Redactor, Rules
from shared.privacy.redaction.data.checksums import card_network, is_iban_valid, is_luhn_valid
from shared.privacy.redaction.spans import TextSpan, without_overlaps

KEY = b"k" * 32
ALL = Rules()
PATTERNS = Rules(names=False)


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(KEY)


def one(redactor: Redactor, text: str, rules: Rules = ALL) -> Redacted:
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
    done = one(redactor, text)
    assert secret not in done.text
    assert (done.count, dict(done.kinds)) == (1, {kind: 1})


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112", "GB29NWBK60161331926818", "Order 4471-20938 left on 12 March 2026",
        "version 1.2.3.4", "999.1.2.3", "Is there an ATM in Leeds?", "The Galaxy S24 Ultra gets hot", "", " \n\t",
    ],
)  # fmt: skip
def test_what_fails_its_checksum_or_is_nobodys_stays(redactor: Redactor, text: str) -> None:
    assert one(redactor, text) == Redacted(text, 0, {})


def test_the_same_person_is_the_same_made_up_one_in_a_text_and_in_later_ones(redactor: Redactor) -> None:
    first, second = redactor.redact(["I am Maria Gonzalez. Maria is right.", "Ask Maria Gonzalez"], ALL)
    made = re.fullmatch(r"I am (\w+) (\w+)\. (\w+) is right\.", first.text)
    assert made is not None
    assert made[1] == made[3] != "Maria"
    assert second.text == f"Ask {made[1]} {made[2]}"
    assert one(Redactor(KEY), "Ask Maria Gonzalez").text == second.text  # Another process, another day.


def test_another_key_makes_up_others() -> None:
    text = "Card 4111 1111 1111 1111, mail maria.gonzalez@example.com, call +44 7700 900123"
    assert one(Redactor(b"a" * 32), text, PATTERNS).text != one(Redactor(b"b" * 32), text, PATTERNS).text
    with pytest.raises(ValueError, match="at least 16"):
        Redactor(b"short")


@given(st.integers(0, 10**11 - 1))
@settings(deadline=None)
def test_a_card_becomes_a_valid_card_of_its_network_and_form(body: int) -> None:
    number = f"4000{body:011d}"
    number += next(c for c in "0123456789" if is_luhn_valid(number + c))
    text = " ".join(number[i : i + 4] for i in range(0, 16, 4))
    made = one(Redactor(KEY), text, PATTERNS).text
    assert made != text
    assert [len(group) for group in made.split()] == [4, 4, 4, 4]
    assert is_luhn_valid(digits(made))
    assert card_network(digits(made)) == "visa"


def test_an_iban_keeps_its_country_and_valid_checksum(redactor: Redactor) -> None:
    made = one(redactor, "DE89 3704 0044 0532 0130 00").text
    assert (made[:2], len(made), is_iban_valid(made)) == ("DE", 27, True)


@pytest.mark.parametrize(
    ("ip", "networks"),
    [("8.8.4.4", "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24"), ("2a00:1450::1", "2001:db8::/32")],
)
def test_an_address_becomes_one_kept_for_documentation(redactor: Redactor, ip: str, networks: str) -> None:
    made = ip_address(one(redactor, ip).text)
    assert any(made in ip_network(network) for network in networks.split())


def test_two_spellings_of_a_phone_number_are_one_made_up_number(redactor: Redactor) -> None:
    a, b = redactor.redact(["call +1 212-555-0187", "call +1 (212) 555 0187"], PATTERNS)
    assert digits(a.text) == digits(b.text) != "12125550187"


def test_what_was_redacted_already_is_left_as_it_is(redactor: Redactor) -> None:
    asked = one(redactor, "I am Maria Gonzalez, mail maria@acme.internal")
    name = asked.text.split()[2]
    (again,) = redactor.redact([f"Dear {name}, thank you. I told Ivan."], ALL, already_redacted=[asked.text])
    assert again.text.startswith(f"Dear {name}, thank you. I told ")
    assert (again.count, "Ivan" in again.text) == (1, False)


def test_redacting_twice_replaces_again_and_never_brings_anything_back(redactor: Redactor) -> None:
    """Made-up data looks real, so that nothing can tell it apart: whoever redacts again says what is `already`."""
    text = "I am Maria Gonzalez, mail maria@acme.internal"
    once = one(redactor, text)
    twice = one(redactor, once.text)
    assert once.count == twice.count
    assert not re.search("Maria|Gonzalez|acme", once.text + twice.text, re.I)
    (known,) = redactor.redact([once.text], ALL, already_redacted=[once.text])
    assert known == Redacted(once.text, 0, {})


def test_a_task_may_turn_redaction_or_names_off_and_add_kinds(redactor: Redactor) -> None:
    text = "I am Maria Gonzalez, badge EMP-1234, card 4111 1111 1111 1111"
    assert one(redactor, text, Rules.of(RedactionSettings(enabled=False))) == Redacted(text, 0, {})
    assert "Maria Gonzalez, badge EMP-1234" in one(redactor, text, PATTERNS).text
    own = RedactionSettings.model_validate({"patterns": [{"name": "badge", "regex": r"EMP-\d{4}"}]})
    done = one(redactor, text, Rules.of(own))
    assert dict(done.kinds) == {"person": 1, "card": 1, "badge": 1}
    assert re.search(r"badge [A-Z]{3}-\d{4},", done.text)
    assert "EMP-1234" not in done.text


def test_a_pattern_that_is_no_expression_is_named(redactor: Redactor) -> None:
    with pytest.raises(ConfigurationError, match="redaction pattern badge: not a regular expression"):
        one(redactor, "x", Rules(patterns=(("badge", "(["),)))


def test_a_pattern_without_end_is_stopped_and_what_it_could_not_judge_is_replaced(redactor: Redactor) -> None:
    text = "a" * 3_000 + "!"
    started = time.perf_counter()
    done = one(redactor, text, Rules(names=False, patterns=(("slow", "(a|aa)+$"),)))
    assert time.perf_counter() - started < 10
    assert done.count >= 1
    assert "a" * 100 not in done.text


@pytest.mark.parametrize("unit", ["\n", "1 ", "Aa ", "a@", "Anna and ", "name ", "'", "ab:", "1 Abc Street, ", "A. "])
def test_no_text_takes_more_than_its_length(redactor: Redactor, unit: str) -> None:
    """Twice as long takes about twice as long: CPU seconds, so that a busy machine does not count."""

    def least_seconds(size: int) -> float:
        taken = []
        for _ in range(2):
            started = time.process_time()
            one(redactor, unit * (size // len(unit)))
            taken.append(time.process_time() - started)
        return min(taken)

    one(redactor, "Does it work, Maria?")
    gc.disable()  # What it looks through is what all the tests before this one have left.
    try:
        assert least_seconds(32_000) < 8 * least_seconds(8_000) + 0.5
    finally:
        gc.enable()


def test_a_long_text_loses_what_stands_at_its_ends(redactor: Redactor) -> None:
    text = "I am Maria Gonzalez. " + "The parcel is late. " * 2_500 + "Write to maria@acme.internal"
    done = one(redactor, text)
    assert done.count == 2
    assert not re.search("Maria|acme", done.text)


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=200)
def test_any_text_at_all_is_redacted_without_an_error_and_by_patterns_the_same_each_time(text: str) -> None:
    first = one(Redactor(KEY), text, PATTERNS)
    assert first == one(Redactor(KEY), text, PATTERNS)
    assert (first.text == text) == (first.count == 0)


@given(
    st.text(alphabet="ab ,c", min_size=12, max_size=40),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 3)), max_size=8),
)
def test_of_spans_that_overlap_none_keeps_three_letters_in_clear(text: str, found: list[tuple[int, int, int]]) -> None:
    spans = [TextSpan(min(a, b), max(a, b), f"kind{w}", w) for a, b, w in found if a != b]
    kept = without_overlaps(text, spans)
    assert all(a.end <= b.start for a, b in pairwise(kept))
    covered = {i for s in kept for i in range(s.start, s.end)}
    for span in spans:
        inside = range(span.start, min(span.end, len(text)))
        left = "".join(" " if i in covered else text[i] for i in inside)
        assert all(len(run) < 3 for run in re.findall(r"\w+", left))
