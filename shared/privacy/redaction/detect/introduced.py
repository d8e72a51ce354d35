"""Names that a cue introduces: "my name is …", "Dear …", "Frau Dr. …", "Regards, …"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.privacy.redaction.data.cues import (
    ADDRESSED,
    BEFORE_A_LADY,
    BEFORE_A_THING,
    DOING,
    FIELD,
    FOREIGN,
    FORM,
    INTRODUCED,
    JOINING,
    KEYED,
    NAMED,
    NOT_ADDRESSED,
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
from shared.privacy.redaction.detect.name_shapes import NAME_WEIGHT, CueStrength, NameShapes
from shared.privacy.redaction.spans import TextSpan

_CUES = (
    (TITLED, CueStrength.TITLE), (KEYED, CueStrength.TITLE), (RANKED, CueStrength.STRONG),
    (INTRODUCED, CueStrength.STRONG), (FIELD, CueStrength.FIELD), (RELATED, CueStrength.TITLE),
    (DOING, CueStrength.DOING), (FORM, CueStrength.NAMED), (NAMED, CueStrength.NAMED), (STRONG, CueStrength.STRONG),
    (SIGN_OFF, CueStrength.STRONG), (SPEAKER, CueStrength.SPEAKER), (TOWARDS, CueStrength.TOWARDS),
    (SELF, CueStrength.SELF), (WEAK, CueStrength.WEAK),
)  # fmt: skip
_FOREIGN_CUES = ((FOREIGN, CueStrength.STRONG),)
_REQUIRED_SIGNS = {FIELD: ":", RELATED: "(", KEYED: ":", FORM: ":=>"}
"""The signs without one of which a text cannot contain a cue: a quick test before its expression runs."""
_WORD_BEFORE = 12
"""Characters before a title in which an article of it would stand."""
CERTAIN = frozenset(
    (CueStrength.TITLE, CueStrength.NAMED, CueStrength.STRONG, CueStrength.FIELD, CueStrength.SELF, CueStrength.DOING)
)
"""Names after these cues are not checked against counter-evidence."""


class IntroducedNames:
    """Finds names by the cue before them."""

    def __init__(self, lexicon: Lexicon, shapes: NameShapes) -> None:
        self._lexicon, self._shapes = lexicon, shapes

    def find(
        self, text: str, tokens: list[Token], index_at: dict[int, int], foreign: bool
    ) -> Iterator[tuple[TextSpan, CueStrength]]:
        """Yield each name with the strength of its cue; `index_at`: token indices by their start."""
        for cue, strength in (*_CUES, *_FOREIGN_CUES) if foreign else _CUES:
            if (signs := _REQUIRED_SIGNS.get(cue)) and not any(sign in text for sign in signs):
                continue
            for found in cue.finditer(text):
                index = index_at.get(found.end())
                if index is None or (foreign and strength is CueStrength.SELF):  # There "im" does not mean "I'm".
                    continue
                if strength is CueStrength.WEAK and tokens[index].lower in MONTHS and JOINING.search(found[0]):
                    continue
                if strength is CueStrength.TITLE and self._is_place(tokens, index):
                    continue
                if strength is CueStrength.TITLE and self._is_particle(tokens, index):
                    name = self._shapes.name_span(text, tokens, index + 1, strength)
                    yield TextSpan(tokens[index].start, name.end, "person", NAME_WEIGHT), strength
                elif self.may_begin(tokens, index, strength, foreign):
                    span = self._shapes.name_span(text, tokens, index, strength)
                    if cue is TITLED and not tokens[index].is_capitalised:  # "mr john brown": an everyday word, too.
                        span = max(span, self._addressed(text, tokens, index), key=lambda either: either.end)
                    yield span, strength
                elif cue is TITLED and self._is_addressed(text, found, tokens[index]):
                    yield self._addressed(text, tokens, index), strength

    def may_begin(self, tokens: list[Token], index: int, strength: CueStrength, foreign: bool) -> bool:
        """Return True if the word after a cue of this strength may begin a name."""
        lexicon, token = self._lexicon, tokens[index]
        if token.lower in lexicon.stop_words or (
            token.lower in lexicon.not_people and strength is not CueStrength.TITLE
        ):
            return False
        if TITLE.fullmatch(token.text) and token.lower not in lexicon.first_names and strength is not CueStrength.TITLE:
            return False
        if not token.is_capitalised:
            return self._may_begin_in_lower_case(tokens, index, strength)
        if token.is_code and strength not in (CueStrength.TITLE, CueStrength.NAMED):
            return False
        if strength is CueStrength.SPEAKER and "-" in token.lower:
            return any(part in lexicon.first_names for part in token.lower.split("-"))
        if strength is CueStrength.SPEAKER and foreign:
            return token.lower in lexicon.common_first_names or (
                token.lower in lexicon.first_names and not lexicon.is_ordinary(token.lower)
            )
        if strength is CueStrength.FIELD:
            words = tokens[index : index + 2]
            is_firm = words[-1].lower in lexicon.organisation_words or words[-1].lower in lexicon.not_people
            return not is_firm and any(lexicon.is_name(word.lower) for word in words)
        if (
            strength is CueStrength.TITLE
            or lexicon.is_first_name(token.lower)
            or token.lower in lexicon.common_first_names
        ):
            return True
        if strength in (CueStrength.STRONG, CueStrength.NAMED, CueStrength.SPEAKER):
            return not lexicon.is_ordinary(token.lower) or (
                strength is not CueStrength.SPEAKER and lexicon.is_name(token.lower)
            )
        if strength is CueStrength.BESIDE and lexicon.is_name(token.lower) and not lexicon.can_follow_name(token.lower):
            return True
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        is_organisation = after is not None and after.is_capitalised and after.lower in lexicon.organisation_words
        return (
            strength in (CueStrength.TOWARDS, CueStrength.BESIDE)
            and not lexicon.is_ordinary(token.lower)
            and not token.text.isupper()
            and not is_organisation
            and not foreign
        )

    def _may_begin_in_lower_case(self, tokens: list[Token], index: int, strength: CueStrength) -> bool:
        lexicon, token = self._lexicon, tokens[index]
        if strength is CueStrength.SELF:
            return not lexicon.is_ordinary(token.lower) and not lexicon.is_ordinary(tokens[index + 1].lower)
        if strength is CueStrength.NAMED:
            after = tokens[index + 1] if index + 1 < len(tokens) else None
            if (
                after is not None
                and not after.is_capitalised
                and len(after.lower) > 3
                and not lexicon.is_ordinary(after.lower)
            ):
                return True
            return (
                lexicon.is_first_name(token.lower)
                or token.lower in lexicon.common_first_names
                or not lexicon.is_ordinary(token.lower)
            )
        if strength is CueStrength.DOING:
            is_first_name = token.lower in lexicon.first_names and token.lower not in lexicon.everyday_names
            return is_first_name and not lexicon.can_follow_name(token.lower)
        return lexicon.is_first_name(token.lower) or (
            strength is CueStrength.STRONG and token.lower in lexicon.common_first_names
        )

    def _is_addressed(self, text: str, cue: re.Match[str], token: Token) -> bool:
        """Return True for a last name in lower case behind a title: "mr smith", also if it is a word: "mrs young".

        Not where the title is none: "the mr author" of a merge request, "meine frau lange …", "an MR scan".
        """
        lexicon, title = self._lexicon, cue[0].split()[0].removesuffix(".")
        if token.is_capitalised or title.casefold() not in ADDRESSED or (title.isupper() and not text.isupper()):
            return False
        before = text[max(0, cue.start() - _WORD_BEFORE) : cue.start()]
        if len(token.lower) <= 2 or self._is_small_word(token) or BEFORE_A_LADY.search(before):
            return False
        if token.lower.startswith(("o'", "o’")):  # The dictionary has some of these.
            return True
        is_word = lexicon.is_ordinary(token.lower)
        if is_word and (token.lower in NOT_ADDRESSED or BEFORE_A_THING.search(before)):
            return False
        return lexicon.is_name(token.lower)

    def _addressed(self, text: str, tokens: list[Token], index: int) -> TextSpan:
        """The span of such a name, with a last name behind it: in lower case any word could go on."""
        first, after = tokens[index], tokens[index + 1] if index + 1 < len(tokens) else None
        if (
            after is not None
            and text[first.end : after.start] == " "
            and after.lower in self._lexicon.last_names
            and (first.lower in self._lexicon.first_names or not self._lexicon.is_ordinary(after.lower))
            and not self._is_small_word(after)
        ):
            return TextSpan(first.start, after.end, "person", NAME_WEIGHT)
        return TextSpan(first.start, first.end, "person", NAME_WEIGHT)

    def _is_small_word(self, token: Token) -> bool:
        """Return True for a word that sentences of some language are made of, though somebody has it as a name."""
        lexicon = self._lexicon
        return (
            token.lower in lexicon.stop_words
            or token.lower in lexicon.foreign_stop_words
            or token.lower in lexicon.not_people
            or token.lower in PARTICLES
        )

    def _is_place(self, tokens: list[Token], index: int) -> bool:
        """Return True for a place behind a title: the Prince Albert Dock."""
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        return (
            after is not None
            and after.is_capitalised
            and after.start == tokens[index].end + 1
            and after.lower in PLACE_END
            and after.lower not in self._lexicon.last_names
        )

    def _is_particle(self, tokens: list[Token], index: int) -> bool:
        """Return True for a particle that a name begins with: "Herr von Hohenfels"."""
        token, after = tokens[index], tokens[index + 1] if index + 1 < len(tokens) else None
        return (
            token.lower in PARTICLES
            and not token.is_capitalised
            and after is not None
            and after.start == token.end + 1
            and after.is_capitalised
        )
