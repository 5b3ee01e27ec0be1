"""Neutral text: plain passages, one per line, that are no request and have no label."""

from __future__ import annotations

from pathlib import Path

from refusalscope.prompts.lines import Place, lines

COMMENT = "#"


def passages(path: Path | str) -> tuple[str, ...]:
    r"""The passages in a text file, one per line, in file order; blank lines and lines that begin with `#` are none.

    Read as prompt files are: UTF-8, with or without a byte order mark, ends of lines `\n` or `\r\n`, no endless line.
    What is left of a line is kept as it is written.

    Example:
        >>> texts = passages("data/prompts/neutral.txt")

    Raises:
        PromptError: for a file that cannot be read as text, naming file and line, or that holds no passage.
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            found = tuple(text for _, text in lines(handle, file=path) if text.strip() and text[0] != COMMENT)
    except OSError as error:
        raise Place(path).error(f"cannot be read ({error.strerror}).", "Check the path and its permissions.") from error
    if not found:
        raise Place(path).error("holds no passage.", "Write a passage per line.")
    return found
