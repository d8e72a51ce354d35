"""Lists of names from Faker's locales, to recognise names in texts and to choose surrogates from.

Latin script only. First names that are also everyday English words ("will", "mark", "rose") are listed apart: they
count as names only where a capital or the word before says so.
"""

from __future__ import annotations

import importlib
import pkgutil
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product

_COMMON_LOCALES = ("en_US", "en_GB", "en_IE", "en_NZ", "en_IN", "fr_FR", "de_DE", "es_ES", "it_IT")

# First names that are everyday words too: only a capital inside a sentence or the word before shows a name is meant.
_EVERYDAY_NAMES = frozenset(
    """
    ace al amber angel april art ash august autumn bill blue bob bobby brandy brook buck bud candy carol case cash
    chance charity chase chad christian clay cliff colt cooper crystal dale dan dawn dean destiny don dot drew duke
    earl earnest eden eve ever faith fay fern florence ford forest frank gale gay gene genesis georgia ginger gift
    glory grace grant guy harmony haven hazel heath heather heaven holly honey hope hunter iris isle ivory ivy jack
    jade jasmine jay jean jersey jewel jo josh journey joy june just justice kay king kit lady lane laurel lily link
    lord love lucky luna major mark mason master max may melody memory mercy merit merry miles misty mike mo nick
    noble norm north nova olive opal page parker pat patience patty pearl penny peace pier pierce pop porter
    precious prince princess promise prudence queen ralph ray reed remedy rich rick rob robin rocky rod rose
    rosemary royal ruby rusty sage sandy savannah scout sean season serenity shell sherry skip sky star sterling
    stone storm sue summer sunny tab tad tanner taylor teal terry tim tina tiny trace trey trinity troy tucker van
    victor victory viola violet virtue vernon wade ward warren wes will willow winter wolf woody adelaide albino ale
    alexandria ani ante archer aria ascension aura austin baptist brooklyn candela carmine cheyenne concha constance
    coral cord corona devon diamond durante ebony edit emmy eta fanny flora forum franco gala gaspar greco grit
    hardy harm harper harsh indie jai jan janus jena kauri kelvin kent kike kingston lance lea lilo lincoln lope lore
    madison mar margarita mari marina marine marten maxi maxim maxima maya mina montserrat nacho nada oni orlando
    osha paca panini pastor peer perry philippine phoenix pilar piper poppy raven reyes roman rosa rosario salome
    salvador santiago santos shay sierra sol sole tai te tia till tito tori tory trinidad undine urban valentine
    veer victoria vitus warwick wolfram zion
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
# Capitalised words that are never redacted as people: calendar, places, brands, openings and closings of letters.
_NOT_PEOPLE = frozenset(
    """
    montag dienstag mittwoch donnerstag freitag samstag sonntag lundi mardi mercredi jeudi vendredi samedi dimanche
    lunes martes miércoles jueves viernes sábado lunedì martedì mercoledì giovedì venerdì sabato domenica maandag
    dinsdag woensdag donderdag vrijdag zaterdag zondag
    monday tuesday wednesday thursday friday saturday sunday january february march july september october november
    december easter christmas ramadan diwali hanukkah africa america asia austria australia berlin brussels canada
    china cuba europe france germany india ireland israel italy japan jordan kenya london madrid milan moscow munich
    oslo paris poland rome russia scotland spain sydney texas tokyo turkey ukraine vienna wales york zurich
    california virginia carolina dakota visa mastercard matercard maestro amex paypal google apple amazon alexa siri
    cortana mercedes tesla dior chanel armani gucci prada netflix lidl aldi tesco ikea samsung nokia sony microsoft
    windows android iphone ipad macbook facebook instagram whatsapp twitter tiktok youtube spotify uber airbnb ebay
    etsy shopify klarna stripe revolut monzo wise zelle venmo skype zoom slack outlook gmail yahoo linkedin adobe
    intel nvidia oracle cisco xbox playstation nintendo siemens bosch philips bmw audi volkswagen toyota honda
    nissan renault peugeot fiat volvo hyundai lufthansa ryanair easyjet vodafone telekom orange barclays lloyds
    natwest santander hsbc citibank nike adidas puma zara primark sephora walmart costco target fedex ups dhl hermes
    evri gls dpd usps seagate kindle echo fitbit garmin dyson lego excel word bluetooth wifi dear hello hi hey
    thanks thank please sir madam miss mister mr mrs ms mx dr prof best kind regards cheers sincerely english german
    french spanish italian russian chinese japanese dutch polish turkish arabic hindi tel fax email mobile phone
    mail web www http https name address street city country date order invoice iban bic attn fwd theres guten liebe
    lieber viele vielen beste grüße gruß freundlichen dank danke tag morgen abend geehrte geehrter bonjour merci
    cordialement buenos buenas gracias saludos grazie saluti team support service desk customer agent bot god jesus
    doc folks everyone everybody guys estimado estimada estimados apreciado querido querida gentile gentilissimo
    egregio spettabile cher chère caro cara prezado prezada beste geachte kære hej username password login userid
    vorname nachname familienname geburtsname kontoinhaber kontoinhaberin karteninhaber karteninhaberin kundennummer
    kontonummer telefonnummer anschrift geburtsdatum nom prénom prenom apellido apellidos nombre cognome nome sobrenome
    achternaam voornaam titulaire hallo firstname lastname fullname surname
    """.split()  # noqa: SIM905
)
ORGANISATION_WORDS = frozenset(
    """
    ab ag air airlines airport airways agency app associates association bahn bank banking books bv bros building
    card care cathedral center centre church city clinic club co college company conference corp corporation council
    county court department dept electronics energy entertainment estate express festival foundation fund gmbh group
    hall health holdings hospital hotel house inc industries inn institute insurance international kg lab labs
    limited llc llp ltd mall market markets media ministry motors museum music network news oy park partners pharma
    pictures plc press properties records logistics realty restaurant sa school services shop society software
    solutions sons spa station stores store studio studios supermarket systems tech technologies technology telecom
    theatre times trust tv union university ventures street road avenue lane drive square bridge river lake mountain
    island valley beach stadium
    """.split()  # noqa: SIM905
)
"""A name that ends with one of these is not a person's."""


@dataclass(frozen=True)
class Gazetteer:
    """Known names in lower case, and surrogates to choose from, in title case and without everyday words."""

    first_names: frozenset[str]
    common_first_names: frozenset[str]
    last_names: frozenset[str]
    everyday_names: frozenset[str]
    not_people: frozenset[str]
    female_surrogates: tuple[str, ...]
    male_surrogates: tuple[str, ...]
    last_name_surrogates: tuple[str, ...]
    only_female: frozenset[str]


@cache
def load_gazetteer() -> Gazetteer:
    """Build all lists, once per process: about 0.3 s."""
    locales = _locales()
    female = _latin_words(locales, "first_names_female", "first_romanized_names_female")
    male = _latin_words(locales, "first_names_male", "first_romanized_names_male")
    first_names = (female | male).union(
        _latin_words(locales, "first_names", "first_names_nonbinary", "first_romanized_names", "first_names_unisex")
    )
    english = importlib.import_module("faker.providers.person.en_US").Provider
    addresses = importlib.import_module("faker.providers.address.en_US").Provider
    providers = [importlib.import_module(f"faker.providers.person.{name}").Provider for name in _COMMON_LOCALES]
    places = {name.casefold() for name in (*addresses.states, *addresses.countries) if name.isalpha()}
    common = _latin_words(providers, "first_names_female", "first_names_male")
    return Gazetteer(
        first_names=frozenset(first_names),
        common_first_names=frozenset(common) - _NOT_PEOPLE,
        last_names=frozenset(
            _latin_words(locales, "last_names", "last_names_female", "last_names_male", "last_romanized_names")
        ),
        everyday_names=_EVERYDAY_NAMES,
        not_people=_NOT_PEOPLE | (places - common),
        female_surrogates=_surrogates(english.first_names_female, male),
        male_surrogates=_surrogates(english.first_names_male, female),
        last_name_surrogates=_surrogates(english.last_names, first_names),
        only_female=frozenset(female - male),
    )


def _locales() -> list[type]:
    package = importlib.import_module("faker.providers.person")
    modules = (
        importlib.import_module(f"faker.providers.person.{m.name}") for m in pkgutil.iter_modules(package.__path__)
    )
    return [module.Provider for module in modules]


def _latin_words(providers: Iterable[type], *attributes: str) -> set[str]:
    """Return the words of the providers' lists in lower case, with and without accents; Latin script only."""
    words: set[str] = set()
    for provider, attribute in product(providers, attributes):
        values = getattr(provider, attribute, ())
        if isinstance(values, Iterable):  # Some are properties, which the class itself cannot evaluate.
            candidates = (word.casefold() for name in values for word in str(name).replace("-", " ").split())
            words.update(w for w in candidates if len(w) > 1 and w.isalpha() and max(w) < "\u0250")
    plain = (unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode() for word in words)
    return words | {word for word in plain if len(word) > 1}


def _surrogates(names: Iterable[str], excluded: set[str]) -> tuple[str, ...]:
    """Return the names in order, without everyday words and those in `excluded`."""
    plain = {name for name in names if name.isascii() and name.isalpha() and len(name) > 2}
    no_names = excluded | _EVERYDAY_NAMES | _NOT_PEOPLE
    return tuple(sorted(name for name in plain if name.casefold() not in no_names))
