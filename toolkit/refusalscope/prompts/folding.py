"""When two texts count as the same text."""

from __future__ import annotations

import unicodedata

# Characters that draw nothing yet are not of Unicode's format category: joiners, fillers and variation selectors.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | frozenset(
    map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)


def fold(text: str) -> str:
    """What is left of `text` without case, width, spacing and invisible characters; equal for texts that look alike.

    Unicode NFKC and casefold, format and control characters removed, every run of whitespace one space. Repeated
    until nothing changes, since casefolding can undo the normal form and a removed character can let two others join.
    Letters of two scripts that look alike (Latin and Cyrillic `a`) stay different.
    """
    while (folded := _fold_once(text)) != text:
        text = folded
    return text


def _fold_once(text: str) -> str:
    visible = "".join(char for char in text if not _draws_nothing(char))
    return " ".join(unicodedata.normalize("NFKC", visible).casefold().split())


def _draws_nothing(char: str) -> bool:
    return char in _BLANK or (unicodedata.category(char) in ("Cf", "Cc") and not char.isspace())
