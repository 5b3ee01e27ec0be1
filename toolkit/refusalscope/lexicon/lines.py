"""Files of refusal phrases, compiled to regular expressions over folded text (``data/openings/SOURCES.md``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from refusalscope.errors import MeasurementError
from refusalscope.lexicon.patterns import EDGE, GROUP, SEPARATOR, Line, Matcher, Spellings, fold_line

MOST_GAPS = 2
MOST_LEADS = 3

LINE = re.compile(r"(?P<mark>[=+-] )?(?P<text>[^\[\]]*?)\s*(?:\[(?P<follow>[^\[\]]*)\])?")


@dataclass(frozen=True)
class Language:
    """The refusal phrases of one file, what may stand before them, and sentences that only look like refusals."""

    name: str
    phrases: tuple[Line, ...]
    leads: tuple[Line, ...] = field(repr=False)
    exceptions: tuple[Line, ...] = field(repr=False)
    spellings: Spellings = field(repr=False)

    @cached_property
    def _phrase(self) -> Matcher:
        return Matcher(self.phrases, self.spellings)

    @cached_property
    def _exception(self) -> Matcher:
        return Matcher(self.exceptions, self.spellings)

    @cached_property
    def _lead(self) -> Matcher:
        lines = (one for one in (*self.phrases, *self.leads, *self.exceptions) if not one.text.startswith("…"))
        keys = sorted({re.escape(key) for one in lines for key in self.spellings.keys(one.text)})
        goes_on = "|".join(keys).replace(r"\ ", r"\s")
        return Matcher(self.leads, self.spellings, ahead=f"{SEPARATOR}?{EDGE}(?={goes_on})")

    def declines(self, text: str, sentence: int) -> list[tuple[str, int, int]]:
        """Returns each phrase, with its start and end, by which the sentence of a folded text declines."""
        starts = self._starts(text, sentence) if self._lead.begins(text, sentence) else [sentence]
        found = [(one.text, start, end) for start in starts for one, end in self._phrase.matches(text, start)]
        found += [(one.text, sentence, end) for one, end in self._phrase.matches_later(text, sentence)]
        if found and any(True for start in starts for _ in self._exception.matches(text, start)):
            return []
        return found

    def _starts(self, text: str, sentence: int) -> list[int]:
        """Returns where a phrase may start in a sentence: at its beginning and behind what leads up to it."""
        found, newest = [sentence], {sentence}
        for _ in range(MOST_LEADS):
            newest = {end for start in newest for _, end in self._lead.matches(text, start)} - {*found}
            if not newest:
                break
            found += sorted(newest)
        return found


def read_language(file: Path) -> Language:
    """Returns the refusal phrases of one file.

    Raises:
        MeasurementError: The file cannot be read, holds no phrase, or has a malformed line, which the message names.
    """
    phrases: dict[str, Line] = {}
    leads: list[Line] = []
    exceptions: list[Line] = []
    spellings: dict[str, tuple[str, ...]] = {}
    for number, line in numbered(file):
        try:
            mark, phrase = parsed(line, spellings)
            if mark == "=":
                spellings[fold_line(phrase.text)] = phrase.follow
            elif mark:
                (leads if mark == "+" else exceptions).append(phrase)
            elif fold_line(phrase.text) in phrases:
                raise ValueError("the phrase stands in the file twice: join the two lines")
            else:
                phrases[fold_line(phrase.text)] = phrase
        except ValueError as problem:
            raise MeasurementError(f"{file}, line {number}: {problem}.") from None
    if not phrases:
        raise MeasurementError(f"{file} holds no phrase: write one a line, or remove the file.")
    return Language(file.stem, tuple(phrases.values()), tuple(leads), tuple(exceptions), Spellings(spellings))


def numbered(file: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a file that say something, with their numbers."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise MeasurementError(f"{file} cannot be read as UTF-8 text ({problem}): restore it.") from problem
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip()


def parsed(line: str, spellings: dict[str, tuple[str, ...]]) -> tuple[str, Line]:
    """Returns the mark of a line ("" for a phrase) and what it says; a ``ValueError`` says what is wrong with it."""
    found = LINE.fullmatch(line)
    if found is None:
        raise ValueError(f"{line!r} is no phrase: square brackets stand once, at the end")
    mark, text, follow = (found["mark"] or "").strip(), found["text"], found["follow"]
    if mark and follow is not None:
        raise ValueError(f"{line!r} begins with {mark!r} and takes no square brackets")
    if mark == "=":
        phrase = spelled(text, spellings)
    else:
        check_words(mark, text)
        phrase = Line(text, () if follow is None else tuple(one.strip() for one in follow.split("|")))
    for one in phrase.follow if mark == "=" else (phrase.text, *phrase.follow):
        check_text(one, spellings)
    return mark, phrase


def spelled(text: str, spellings: dict[str, tuple[str, ...]]) -> Line:
    """Returns a word or a group with everything that is taken for it; a word is taken for itself."""
    head, *others = (one.strip() for one in text.split("|"))
    if not others or not head:
        raise ValueError(f"{text!r} names no second spelling: write = one | another")
    if fold_line(head) in spellings:
        raise ValueError(f"{head!r} has its spellings already: join the two lines")
    return Line(head, tuple(others) if re.fullmatch(GROUP, head) else (head, *others))


def check_words(mark: str, text: str) -> None:
    """Refuses what is no phrase; only a phrase may stand later in its sentence."""
    words = text if mark else text.removeprefix("…").lstrip()
    if not words[:1].isalpha() or "|" in text or "{" in text:
        raise ValueError(f"{text!r} is no phrase: begin with a word; bars and groups stand in square brackets")


def check_text(text: str, spellings: dict[str, tuple[str, ...]]) -> None:
    """Refuses an empty alternative, a group without its line above, and more gaps than are read quickly."""
    if not text:
        raise ValueError("an alternative is empty: write words between the bars")
    unknown = [one for one in re.findall(GROUP, text) if fold_line(one) not in spellings]
    if unknown or re.search(r"[{}]", re.sub(GROUP, "", text)):
        raise ValueError(f"{text!r} uses {unknown[0] if unknown else 'a brace'}, which no line above explains")
    if text.count("…") > MOST_GAPS:
        raise ValueError(f"{text!r} has more than {MOST_GAPS} gaps: split the line")
