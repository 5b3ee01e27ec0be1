"""The physical lines of a prompt file: UTF-8, without NUL bytes, and never longer than a limit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple

from refusalscope.errors import PromptError

LINE_LIMIT = 2**20  # bytes; bounds memory for a file that is one endless line

_SAVE_AS_UTF8 = "Save the file as UTF-8."


class Place(NamedTuple):
    """Where a row came from: the file as the caller wrote it, and the 1-based physical line."""

    file: Path | str
    line: int | None = None

    def error(self, problem: str, fix: str) -> PromptError:
        """The error to raise for a problem found here."""
        return PromptError(problem, file=self.file, line=self.line, fix=fix)


class Row(NamedTuple):
    """What a file or a caller claims is a row, still unchecked."""

    place: Place
    values: object


def quoted(text: str) -> str:
    """`text` in quotes on one line, cut to a length that fits an error message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def lines(handle: BinaryIO, *, file: Path) -> Iterator[tuple[Place, str]]:
    r"""Each line with its place and without its end (`\n` or `\r\n`); no other character ends a line.

    U+2028, U+2029 and U+0085 are text: `str.splitlines` would break a JSON line at them. A byte order mark is dropped.

    Raises:
        PromptError: for a line that is too long, holds a NUL byte, or is not UTF-8.
    """
    offset = 0
    for number in count(1):
        raw = handle.readline(LINE_LIMIT + len(b"\r\n"))
        if not raw:
            return
        yield Place(file, number), _decoded(raw, at=Place(file, number), offset=offset)
        offset += len(raw)


def _decoded(raw: bytes, *, at: Place, offset: int) -> str:
    _refuse_utf16(raw, at=at)
    content = raw.removesuffix(b"\n").removesuffix(b"\r")
    if len(content) > LINE_LIMIT:
        raise at.error(f"the line is longer than the limit of {LINE_LIMIT} bytes.", "Write one text per line.")
    if (nul := content.find(b"\0")) >= 0:
        raise at.error(f"NUL byte at byte offset {offset + nul}.", f"Remove it, or: {_SAVE_AS_UTF8}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise at.error(f"not UTF-8 at byte offset {offset + error.start}.", _SAVE_AS_UTF8) from error
    return text.removeprefix("\ufeff") if at.line == 1 else text


def _refuse_utf16(raw: bytes, *, at: Place) -> None:
    if at.line != 1:
        return
    marked = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    unmarked = len(raw) > 1 and (raw[0] == 0) != (raw[1] == 0)
    if marked or unmarked:
        raise at.error("the file looks like UTF-16.", _SAVE_AS_UTF8)
