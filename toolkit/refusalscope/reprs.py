"""How nouns show themselves: the text is a claim on one line, the HTML a small table of digits, every string escaped.

A notebook stores both and compares the text letter by letter, so digits that wobble stand in the table only.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from html import escape
from typing import Any

MOST = 12  # items of a collection that a cell spells out


class Shown:
    """Base of nouns. By itself the text is the kind of noun and its first word, the HTML a table of its fields.

    A noun with more to say writes ``__repr__``, which is kept to one line: model and file names come from outside. One
    with digits to show in another's table writes ``__str__`` too.
    """

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        if "__repr__" in vars(cls):
            cls.__repr__ = _on_one_line(cls.__repr__)  # pyright: ignore[reportAttributeAccessIssue]

    def __repr__(self) -> str:
        values = facts_of(self)
        word = next((value for value in values.values() if isinstance(value, str) and value), "")
        return one_line(f"{type(self).__name__}: {word or ', '.join(values) or 'nothing in it'}")

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        return facts(facts_of(self), caption=repr(self))


def facts_of(noun: Any) -> dict[str, object]:
    """Returns the public fields of a value by name, in their order, without those its text is not to show."""
    if dataclasses.is_dataclass(noun):
        return {one.name: getattr(noun, one.name) for one in dataclasses.fields(noun) if one.repr}
    values = vars(noun) if hasattr(noun, "__dict__") else noun._asdict()
    return {name: value for name, value in values.items() if not name.startswith("_")}


def facts(rows: Mapping[str, object], *, caption: str) -> str:
    """Returns an HTML table with a name and a value per row. Strings are escaped; see ``spelled`` for the others."""
    return table([(name, value) for name, value in rows.items()], caption=caption)


def table(rows: Iterable[Sequence[object]], *, caption: str, head: Sequence[str] = ()) -> str:
    """Returns an HTML table whose rows begin with their name. Every string is escaped, and there is no script.

    Example:
        >>> table([("share", 0.25)], caption="a < b")
        '<table><caption>a &lt; b</caption><tr><th>share</th><td>0.25</td></tr></table>'
    """
    top = "".join(f"<th>{_cell(name)}</th>" for name in head)
    body = "".join(
        f"<tr><th>{_cell(name)}</th>{''.join(f'<td>{_cell(one)}</td>' for one in rest)}</tr>" for name, *rest in rows
    )
    return f"<table><caption>{escape(caption)}</caption>{f'<tr>{top}</tr>' if top else ''}{body}</table>"


def picture(png: bytes, words: str) -> str:
    """Returns an inline picture in HTML, with the words, escaped, as its caption and for whoever cannot see it."""
    said = escape(words)
    image = f'<img alt="{said}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    return f"<figure>{image}<figcaption>{said}</figcaption></figure>"


def spelled(value: Any) -> str:
    """Returns a value as the text of a cell: three digits of a number, the shape of a tensor, a few of many items."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, str | int) or _is_ours(value):
        return str(value)
    if (shape := getattr(value, "shape", None)) is not None:
        return f"{type(value).__name__} of {' × '.join(map(str, shape))}" if shape else spelled(value.item())
    if isinstance(value, Mapping):
        return _several([f"{spelled(key)}: {spelled(one)}" for key, one in value.items()])
    if isinstance(value, Collection):
        return _several([spelled(one) for one in value])
    return type(value).__name__


def one_line(text: str) -> str:
    """Returns text without line breaks, control characters spelled out: names come from outside."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def digits(value: float | None, interval: tuple[float, float] | None) -> tuple[str, str]:
    """Returns value and interval as text, both with two significant digits of the interval's width."""
    if interval is None or value is None:
        return "nan" if value is None else f"{value:.3g}", "[no interval]"
    number, low, high = rounded((value, *interval), interval[1] - interval[0])
    return number, f"[{low}, {high}]"


def rounded(numbers: Sequence[float], width: float) -> list[str]:
    """Returns numbers as text with two significant digits of ``width``, two decimals for no width, no negative zero."""
    decimals = 2 if width == 0 else max(0, 1 - math.floor(math.log10(width)))
    return [f"{round(x, decimals) + 0.0:.{decimals}f}" for x in numbers]


def between(low: float, high: float) -> str:
    """Returns a band as text, with two significant digits of its width."""
    return "[{}, {}]".format(*rounded((low, high), high - low))


def where(interval: tuple[float, float] | None) -> str:
    """Returns in words where an interval lies."""
    if interval is None:
        return "there is no interval"
    return f"the interval {'is above' if interval[0] > 0 else 'is below' if interval[1] < 0 else 'holds'} zero"


def among(p: float, k: int) -> str:
    """Returns in words where something stands among k placebos, given p = (1 + b) / (1 + k)."""
    return "no placebo does as much" if round(p * (1 + k)) <= 1 else "some placebos do as much"


def _on_one_line(claim: Callable[[Any], str]) -> Callable[[Any], str]:
    @wraps(claim)
    def said(self: Any) -> str:
        return one_line(claim(self))

    return said


def _cell(value: object) -> str:
    return escape(one_line(spelled(value)))


def _several(texts: Sequence[str]) -> str:
    more = len(texts) - MOST
    return "; ".join(texts[:MOST]) + (f"; and {more} more" if more > 0 else "") or "none"


def _is_ours(value: object) -> bool:
    return isinstance(value, Shown) or type(value).__module__.startswith(("refusalscope.", "pathlib"))
