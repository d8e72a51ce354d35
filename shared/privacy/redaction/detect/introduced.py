"""The names that a word before them announces: "my name is …", "Dear …", "Frau Dr. …", "Regards, …"."""

from __future__ import annotations

from collections.abc import Iterator

from shared.privacy.redaction.data.cues import (
    ABROAD,
    DOING,
    FIELD,
    INTRODUCED,
    JOINING,
    KEYED,
    NAMED,
    RANKED,
    RELATED,
    SELF,
    SIGN_OFF,
    SPEAKER,
    STRONG,
    TITLE,
    TITLED,
    TOWARDS,
    WEAK,
)
from shared.privacy.redaction.data.organisations import PLACE_END
from shared.privacy.redaction.detect.lexicon import MONTHS, PARTICLES, Lexicon, Token
from shared.privacy.redaction.detect.name_shapes import WEIGHT, Shapes, Strength
from shared.privacy.redaction.spans import TextSpan

_CUES = (
    (TITLED, Strength.TITLE), (KEYED, Strength.TITLE), (RANKED, Strength.STRONG), (INTRODUCED, Strength.STRONG),
    (FIELD, Strength.FIELD), (RELATED, Strength.TITLE), (DOING, Strength.DOING), (NAMED, Strength.NAMED),
    (STRONG, Strength.STRONG), (SIGN_OFF, Strength.STRONG),
    (SPEAKER, Strength.SPEAKER), (TOWARDS, Strength.TOWARDS), (SELF, Strength.SELF), (WEAK, Strength.WEAK),
)  # fmt: skip
_CUES_ABROAD = ((ABROAD, Strength.STRONG),)
_NEEDED = {FIELD: ":", RELATED: "(", KEYED: ":"}
"""Without this sign in the text a cue cannot be there."""
SURE = frozenset((Strength.TITLE, Strength.NAMED, Strength.STRONG, Strength.FIELD, Strength.SELF, Strength.DOING))
"""What is told so is not doubted."""


class Announced:
    def __init__(self, lexicon: Lexicon, shapes: Shapes) -> None:
        self._lexicon, self._shapes = lexicon, shapes

    def told(
        self, text: str, tokens: list[Token], at: dict[int, int], foreign: bool
    ) -> Iterator[tuple[TextSpan, Strength]]:
        """Each name with how surely it is one; `at`: the index of the token that starts there."""
        for cue, strength in (*_CUES, *_CUES_ABROAD) if foreign else _CUES:
            if (sign := _NEEDED.get(cue)) and sign not in text:
                continue
            for found in cue.finditer(text):
                index = at.get(found.end())
                if index is None or (foreign and strength is Strength.SELF):  # "im" is no "I'm" there.
                    continue
                if strength is Strength.WEAK and tokens[index].low in MONTHS and JOINING.search(found[0]):
                    continue
                if strength is Strength.TITLE and self._is_place(tokens, index):
                    continue
                if strength is Strength.TITLE and self._is_particle(tokens, index):
                    name = self._shapes.name(text, tokens, index + 1, strength)
                    yield TextSpan(tokens[index].start, name.end, "person", WEIGHT), strength
                elif self.may_begin(tokens, index, strength, foreign):
                    yield self._shapes.name(text, tokens, index, strength), strength

    def may_begin(self, tokens: list[Token], index: int, strength: Strength, foreign: bool) -> bool:
        """Whether a word after a cue is a name."""
        know, token = self._lexicon, tokens[index]
        if token.low in know.stop or (token.low in know.not_people and strength is not Strength.TITLE):
            return False
        if TITLE.fullmatch(token.text) and token.low not in know.first and strength is not Strength.TITLE:
            return False
        if not token.capital:
            if strength is Strength.SELF:
                return not know.ordinary(token.low) and not know.ordinary(tokens[index + 1].low)
            if strength is Strength.NAMED:
                after = tokens[index + 1] if index + 1 < len(tokens) else None
                if after is not None and not after.capital and len(after.low) > 3 and not know.ordinary(after.low):
                    return True
                return know.is_first(token.low) or token.low in know.english or not know.ordinary(token.low)
            if strength is Strength.DOING:
                known = token.low in know.first and token.low not in know.everyday
                return known and not know.function_like(token.low)
            return know.is_first(token.low) or (strength is Strength.STRONG and token.low in know.english)
        if token.coded and strength not in (Strength.TITLE, Strength.NAMED):
            return False
        if strength is Strength.SPEAKER and "-" in token.low:
            return any(part in know.first for part in token.low.split("-"))
        if strength is Strength.SPEAKER and foreign:
            return token.low in know.english or (token.low in know.first and not know.ordinary(token.low))
        if strength is Strength.FIELD:
            words = tokens[index : index + 2]
            firm = words[-1].low in know.organisation or words[-1].low in know.not_people
            return not firm and any(know.is_name(word.low) for word in words)
        if strength is Strength.TITLE or know.is_first(token.low) or token.low in know.english:
            return True
        if strength in (Strength.STRONG, Strength.NAMED, Strength.SPEAKER):
            return not know.ordinary(token.low) or (strength is not Strength.SPEAKER and know.is_name(token.low))
        if strength is Strength.BESIDE and know.is_name(token.low) and not know.function_like(token.low):
            return True
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        organisation = after is not None and after.capital and after.low in know.organisation
        return (
            strength in (Strength.TOWARDS, Strength.BESIDE)
            and not know.ordinary(token.low)
            and not token.text.isupper()
            and not organisation
            and not foreign
        )

    def _is_place(self, tokens: list[Token], index: int) -> bool:
        """The Prince Albert Dock."""
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        return (
            after is not None
            and after.capital
            and after.start == tokens[index].end + 1
            and after.low in PLACE_END
            and after.low not in self._lexicon.last
        )

    def _is_particle(self, tokens: list[Token], index: int) -> bool:
        """Whether a name begins with a small word: "Herr von Hohenfels"."""
        token, after = tokens[index], tokens[index + 1] if index + 1 < len(tokens) else None
        return (
            token.low in PARTICLES
            and not token.capital
            and after is not None
            and after.start == token.end + 1
            and after.capital
        )
