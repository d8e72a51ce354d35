"""When two texts are equal, and what of a text its similarity to others is measured by.

Equality is strict, since of equal texts one is dropped: only how the same characters are written down is ignored.
Similarity is lenient, since it only keeps texts apart: case and the punctuation at the ends of words do not count.
Signs, combining marks and punctuation inside words count for both: C++ is not C#, and Hindi कि is not की.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.identity import content_hash

SHINGLE = 4
"""Characters in a shingle."""

Hashes = npt.NDArray[np.uint32]

# The same character in another form; what remains, such as ² and ½, means something else than its parts.
_SAME_CHARACTER = ("<wide>", "<narrow>", "<noBreak>", "<initial>", "<medial>", "<final>", "<isolated>")
_LIGATURES = dict(zip("ﬀﬁﬂﬃﬄﬅﬆ", ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True))
_SPACES = re.compile(r"(?<=\S)[^\S\n]+")
_AFTER_WORDS = re.compile(r"[.,;:?!…\"'»”’،؛؟।॥]+(?=\s|$)")
_BEFORE_WORDS = re.compile(r"(?<!\S)[\"'«“‘¿¡]+")
_CJK_PUNCTUATION = re.compile(r"[。、｡､！？：；，．「」『』（）]+")
# The constants of SplitMix64, xxHash (two) and MurmurHash3: odd and without structure, so that no two runs collide.
_FACTORS = tuple(np.uint64(f) for f in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xFF51AFD7ED558CCD))


def normalise(text: str) -> str:
    """Return the text such that equal texts are equal strings: composed, in standard forms, with single spaces.

    Lines and their indentation stay (in code they mean something), and so do case and punctuation.
    """
    if text.isascii() and text.isprintable() and "  " not in text:  # One line whose only spaces are single ones.
        return text.strip()
    if not text.isascii():
        text = "".join(map(_standard_form, unicodedata.normalize("NFC", text)))
        text = unicodedata.normalize("NFC", text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return _SPACES.sub(" ", "\n".join(line.rstrip() for line in lines)).strip()


def text_hash(text: str) -> str:
    """Return 24 hex digits that are the same for texts that are equal after `normalise`."""
    return content_hash(normalise(text).encode("utf-8", "surrogatepass"), length=24)


def fold(text: str) -> str:
    """Return what the similarity of a text is measured by: case folded, without punctuation around words."""
    if not text:
        return text
    folded = text.casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", _CJK_PUNCTUATION.sub(" ", folded)).casefold()
    words = _AFTER_WORDS.sub(" ", _BEFORE_WORDS.sub(" ", folded)).split()
    return " ".join(words) or " ".join(folded.split())


def code_points(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Return all characters one after the other, and where each text starts; one more start at the end.

    A text that is shorter than a shingle is filled with zeros, so that it has one.
    """
    padded = [text.ljust(SHINGLE, "\0") for text in texts]
    starts = np.zeros(len(padded) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in padded], out=starts[1:])
    return np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32), starts


def rolling_hashes(characters: npt.NDArray[np.uint32]) -> Hashes:
    """Return the hash of each run of four characters, in order."""
    count = max(len(characters) - SHINGLE + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset, factor in enumerate(_FACTORS):
        hashes += characters[offset : offset + count].astype(np.uint64) * factor
    return (hashes >> np.uint64(32)).astype(np.uint32)


def _standard_form(character: str) -> str:
    if character in _LIGATURES:
        return _LIGATURES[character]
    form, _, codes = unicodedata.decomposition(character).partition(" ")
    if form not in _SAME_CHARACTER:
        return character
    return "".join(chr(int(code, 16)) for code in codes.split())
