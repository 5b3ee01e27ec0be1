"""Phrases as regular expressions over folded text, found by the first two letters of a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from refusalscope.lexicon.folding import fold

GAP_CHARACTERS = 100
LETTERS = "0-9a-z\u00df-\u04ff"  # of the scripts that put blanks between words
EDGE = f"(?:(?<![{LETTERS}])|(?![{LETTERS}']))"  # no such word goes on across it
WITHIN = f'[^.!?\\n"。]{{0,{GAP_CHARACTERS}}}'
GAP = f"{EDGE}{WITHIN}?{EDGE}"
SEPARATOR = r"(?:\s?[,;:!-]+\s?|\s)"
CLAUSE_END = r"(?:\s?[.,;:!?\n。)-]|\s?$)"
AT_EDGE, SENTENCE = re.compile(EDGE), re.compile(WITHIN)
GROUP = r"\{[^{}]*\}"
TRANSLATED = {"": r"\s", "…": GAP, ".": CLAUSE_END}


@cache
def fold_line(text: str) -> str:
    """Returns the text of a line folded, with its gaps kept."""
    return "…".join(fold(part).text for part in text.split("…"))


@dataclass(frozen=True)
class Spellings:
    """What a file's lines say in several ways: groups in braces, and words that have several spellings."""

    alternatives: Mapping[str, tuple[str, ...]]

    @cached_property
    def token(self) -> re.Pattern[str]:
        """Matches the next piece of a folded line; the longest word with several spellings wins."""
        heads = sorted((head for head in self.alternatives if head[0] != "{"), key=len, reverse=True)
        spelled = "|".join(map(re.escape, heads)) or "(?!)"
        return re.compile(f"(?:{EDGE}(?:{spelled}){EDGE})|{GROUP}| ?[…,.] ?| |[^ …,.{{}}]")

    def expression(self, text: str) -> str:
        """Returns the regular expression of a line's text or of one alternative of it."""
        return self._written(fold_line(text), respell=True) + EDGE

    def _written(self, folded: str, respell: bool) -> str:
        written, place = "", 0
        while place < len(folded):
            token = self._token_at(folded, place)
            place += len(token)
            if token in self.alternatives and (respell or token[0] == "{"):
                ways = (self._written(fold_line(one), token[0] == "{") for one in self.alternatives[token])
                written += f"(?:{'|'.join(ways)}){EDGE}"
            elif token.strip() == ",":
                written += SEPARATOR if token.endswith(" ") else f"{SEPARATOR}?"
            else:
                written += TRANSLATED.get(token.strip(), re.escape(token))
        return written

    def keys(self, text: str) -> set[str]:
        """Returns the one or two letters with which a text of this line begins."""
        folded = fold_line(text)
        token = self._token_at(folded, 0)
        rest = folded[len(token) :]
        if token in self.alternatives:
            return {
                (fold_line(one) + rest[:1].strip("…,.{") * (rest[:1] == " "))[:2] for one in self.alternatives[token]
            }
        second = self._token_at(rest, 0) if rest else ""
        return {token + second if len(second) == 1 and second not in "…,." else token}

    def _token_at(self, folded: str, place: int) -> str:
        found = self.token.match(folded, place)
        assert found is not None, "braces are checked when the file is read"
        return found.group()


@dataclass(frozen=True)
class Line:
    """A phrase as its file spells it, and the alternatives one of which must follow it; none: anything may."""

    text: str
    follow: tuple[str, ...] = ()


class Matcher:
    """Lines that are matched at a place of a folded text; each is compiled when a text first begins as it does."""

    def __init__(self, lines: Iterable[Line], spellings: Spellings, ahead: str = ""):
        self.spellings, self.ahead = spellings, ahead
        self.anywhere: list[Line] = []
        self.any_ascii = False
        self.lines: dict[str, list[Line]] = {}
        self.patterns: dict[str, re.Pattern[str]] = {}
        for line in lines:
            if line.text.startswith("…"):
                self.anywhere.append(line)
                self.any_ascii |= line.text.removeprefix("…").isascii()
                continue
            for key in spellings.keys(line.text):
                self.lines.setdefault(key, []).append(line)

    def matches(self, text: str, place: int) -> Iterator[tuple[Line, int]]:
        """Yields each line that matches at a place, with the end of its match."""
        first = text[place : place + 2].replace("\n", " ")
        for key in {first, first[:1]}:
            for line in self.lines.get(key, ()):
                found = self._pattern(line).match(text, place)
                if found is not None:
                    yield line, found.end()

    def begins(self, text: str, place: int) -> bool:
        """Returns whether some line begins with the letters at a place."""
        return text[place : place + 1] in self.lines or text[place : place + 2].replace("\n", " ") in self.lines

    def matches_later(self, text: str, place: int) -> Iterator[tuple[Line, int]]:
        """Yields each line with a leading gap that matches in the sentence that goes on at a place."""
        if text.isascii() and not self.any_ascii:
            return
        gap = SENTENCE.match(text, place)
        last = place if gap is None else gap.end()
        for line in self.anywhere:
            found = self._pattern(line).search(text, place)
            if found is not None and found.start() <= last and AT_EDGE.match(text, found.start()):
                yield line, found.end()

    def _pattern(self, line: Line) -> re.Pattern[str]:
        if line.text not in self.patterns:
            follow = "|".join(map(self.spellings.expression, line.follow))
            ahead = f"(?={SEPARATOR}?(?:{follow}))" if follow else self.ahead
            self.patterns[line.text] = re.compile(
                self.spellings.expression(line.text.removeprefix("…").lstrip()) + ahead
            )
        return self.patterns[line.text]
