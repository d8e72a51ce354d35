"""Names are found by the words around them, in several languages; firms, places and everyday words are not."""

from __future__ import annotations

import pytest

from shared.privacy.redaction import Redactor, Rules


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(b"k" * 32)


def people(redactor: Redactor, text: str) -> list[str]:
    return [text[s.start : s.end] for s in redactor.find([text], Rules())[0] if s.kind == "person"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("PC Hargreaves spoke to Cllr Okonjo.", ["Hargreaves", "Okonjo"]),
        ("Termin mit Frau Dr. Schönhauser am Montag um neun", ["Schönhauser"]),
        ("Ich habe mit Herrn Prof. Dr. von Weißenbach gesprochen", ["von Weißenbach"]),
        ("Gentile dott. Scaramella, il bonifico non è arrivato", ["Scaramella"]),
        ("le escribo por doña Inmaculada, que no está", ["Inmaculada"]),
        ("pour ma fille Apolline, absente jeudi", ["Apolline"]),
        ("Mijn naam is Sanne van den Heuvel en ik bel u", ["Sanne van den Heuvel"]),
        ("# TODO(marcin): back off", ["marcin"]),
        ("NOTES\n- Kasia: importer\n- Jean-Marc: lake", ["Kasia", "Jean-Marc"]),
        ("name on it MARGARET Q OAKWOOD, exp 09/27", ["MARGARET Q OAKWOOD"]),
        ("Emergency contact: Prudence Redwood (sister)", ["Prudence Redwood"]),
        ("Kind regards,\nA. Przybylski", ["A. Przybylski"]),
        ("tell him Xochitl sent you", ["Xochitl"]),
        ("it was her carer Abimbola who rang", ["Abimbola"]),
        ("Hi there, it's Ignatius. The pump is broken", ["Ignatius"]),
        ('{"first_name": "Rose", "last": "Stubbs"}', ["Rose", "Stubbs"]),
        ("He reports to Bronwen Adeyemi-Cole now", ["Bronwen Adeyemi-Cole"]),
        ("the form says LASTNAME: OKONKWO, FIRSTNAME: ADAEZE", ["OKONKWO", "ADAEZE"]),
        ("Vorname: Jürgen\nNachname: Müller\nKontonummer: 7", ["Jürgen", "Müller"]),
        ("Nom : DUPONT Prénom : Jean", ["DUPONT", "Jean"]),
        ("Apellidos: García Lorca Nombre: Federico", ["García Lorca", "Federico"]),
        ("Kontoinhaber: Jürgen Müller", ["Jürgen Müller"]),
        ('Kunde: {"vorname": "Jürgen", "nachname": "Müller"}', ["Jürgen", "Müller"]),
        ("<FirstName>Adaeze</FirstName><LastName>Okonkwo</LastName>", ["Adaeze", "Okonkwo"]),
        ("Hallo Jürgen, wie geht es", ["Jürgen"]),
        ("she lied because emeka told them", ["emeka"]),
        ("mr smith called about the bill, is he in?", ["smith"]),
        ("i spoke with mrs. john brown yesterday", ["john brown"]),
        ("please ring mrs o'brien back tomorrow", ["o'brien"]),
        ("frau schmidt hat angerufen wegen der karte", ["schmidt"]),
        ("bitte herrn dr. müller anrufen", ["müller"]),
        ("bonjour mme dupont, votre carte est prête", ["dupont"]),
        ("i spoke to mr emeka nwachukwudi about my refund", ["emeka nwachukwudi"]),
        ("please forward this to dr. anna-lena kowalska before friday", ["anna-lena kowalska"]),
        ("das ist die karte der frau schmidt von nebenan", ["schmidt"]),
    ],
)
def test_a_name_is_found_by_the_words_around_it(redactor: Redactor, text: str, names: list[str]) -> None:
    assert people(redactor, text) == names


@pytest.mark.parametrize(
    "text",
    [
        "Goldman Sachs, Ernst & Young and Harley-Davidson beat estimates.",
        "I drive an Alfa Romeo Giulia and wear Calvin Klein.",
        "Charles Schwab and Edward Jones charge high fees.",
        "We sailed on Lake Victoria and climbed Mount Elgon.",
        "The city and state, e.g. San Francisco, CA; not Santa Barbara or San Diego.",
        "Take the Victoria line to St. James's Park.",
        "They met at Madison Square Garden and the Prince Albert Dock.",
        "The Violet one is out of stock; mine is Olive Green.",
        "IN=eth0 LEN=60 TTL=49",
        "Username: stormcrow_88\nPayout: late",
        "New rates apply from June.",
        "Bitte überweisen Sie den Betrag bis Freitag auf das Konto DE89 3704 0044 0532 0130 00.",
        "Der Kunde hat den Termin im Juli storniert, das Konto wurde gesperrt.",
        "Con DNI 50318467X. Quiero dar de baja la línea.",
        "Il mio ordine del 5 marzo non è arrivato. La Banca ha detto di aspettare.",
        "X-Request-Id: 77\nContent-Type: text",
        "lastName: DataTypes.STRING, full_name = User.name",
        "first_name: Optional[str] = None; last_name: VARCHAR(100)",
        "Nachname:\nVorname:\nKontonummer:",
        "Last name: Required",
        "meine frau hat angerufen, frau und mann sind da",
        "herr der ringe, monsieur le directeur, the mr and mrs",
        "mr robot and mr big are on at nine, i miss rose gardens",
        "saw my dr. btw the bill was 300 and btw i paid it",
        "the mr list is empty and the mr author is away, please rebase mr branch onto main",
        "MR long was normal, a dr appt is booked for monday",
        "meine frau lange nicht gesehen, seine frau stark erkältet",
    ],
)
def test_what_only_looks_like_a_name_is_not_found(redactor: Redactor, text: str) -> None:
    assert people(redactor, text) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("My name is Charles Schwab and the bank closed my account.", ["Charles Schwab"]),
        ("Please ask Edward Jones about the roof.", ["Edward Jones"]),
        ("Mr Morgan Stanley is waiting.", ["Morgan Stanley"]),
        ("Please ask Miguel San Jose about the roof.", ["Miguel San Jose"]),
        ("I asked Grant and Violet about it.", ["Grant", "Violet"]),
        ("Tom & Anna are here.", ["Tom & Anna"]),
        ("I spoke to June yesterday.", ["June"]),
        ("Please tell Oskar that Anna has the keys.", ["Oskar", "Anna"]),
        ("Anna, Kwabena, Li and Noor came.", ["Anna", "Kwabena", "Li", "Noor"]),
    ],
)
def test_the_same_words_are_people_where_the_text_says_so(redactor: Redactor, text: str, names: list[str]) -> None:
    assert people(redactor, text) == names


def test_a_code_behind_a_name_is_not_a_second_name(redactor: Redactor) -> None:
    assert people(redactor, "Urs Zurbriggen, Lohnkonto CH93 0076 2011 6238 5295 7") == ["Urs Zurbriggen"]
