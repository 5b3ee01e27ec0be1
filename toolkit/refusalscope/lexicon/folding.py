"""A text with case, markup and typography folded, with the place in the original of every character that is left."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

# A character with the marks that compose with it: combining accents, Hangul vowels and finals, kana voicing marks.
SEGMENT = re.compile(r".[\u0300-\u036f\u1160-\u11ff\u3099\u309a\uff9e\uff9f]*", re.DOTALL)
# A list item's bullet, which is no emphasis.
BULLET = re.compile(r"(?<=[\r\n])\*(?=[ \t])")
LINE_BREAKS = "\n\r\v\f\u2028\u2029\x85"
ALIKE = {
    "'": "‘’‚‛ʼ′´",
    '"': "“”„‟«»‹›″「」『』〝〞",
    "-": "‐‑‒–—―−",
    ",": "、",
    "": "*_#>~`\u200b\u200c\u200d\u2060\ufeff\u00ad",
}
FOLDED_TO = {ord(one): plain for plain, kind in ALIKE.items() for one in kind}


@dataclass(frozen=True)
class Folded:
    """A folded text; its character ``i`` comes from characters ``starts[i]`` to ``ends[i]`` of the original."""

    text: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]


@lru_cache(maxsize=4096)
def fold_segment(segment: str) -> str:
    """Returns what one character and its combining marks fold to; the empty string for markup."""
    if segment.isspace():
        return "\n" if segment in LINE_BREAKS else " "
    return unicodedata.normalize("NFKC", segment.translate(FOLDED_TO)).casefold()


def fold(text: str, start: int = 0, end: int | None = None) -> Folded:
    """Returns ``text[start:end]`` folded: NFKC, case folded, no markup, one kind each of quotation marks and dashes.

    White space becomes one blank, or one line break where it contains any. A list item's ``*`` becomes ``-``.
    The time is linear in the length of the slice.
    """
    stop = len(text) if end is None else min(end, len(text))
    bullets = {found.start() for found in BULLET.finditer(text, start, stop)}
    letters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for found in SEGMENT.finditer(text, start, stop):
        piece = "-" if found.start() in bullets else fold_segment(found.group())
        if piece in ("\n", " ") and letters and letters[-1] in "\n ":
            letters[-1] = max(letters[-1], piece, key="\n".__eq__)
            ends[-1] = found.end()
            continue
        letters += piece
        starts += [found.start()] * len(piece)
        ends += [found.end()] * len(piece)
    return Folded("".join(letters), tuple(starts), tuple(ends))
