"""The one place that makes progress bars: plain text on stderr, for whatever takes longer than two seconds.

Not ``tqdm.auto``: in a notebook that draws a widget, which is an output of the cell and not stderr, has a random
identifier and times that nbval would compare, and is blank wherever a stored notebook is only read. JupyterLab moves
the plain bar just as a terminal does. There is one bar at a time: what runs inside another is told at its end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

LONG_SECONDS, OFTEN = 2.0, 0.5
_outer: ContextVar[Bar | None] = ContextVar("the bar that is shown, or its silence", default=None)


class Bar:
    """Counts what is done. This one shows nothing; those that are seen show it too."""

    n = 0

    def update(self, n: int = 1) -> None:
        """Counts ``n`` more."""
        self.n += n

    def stage(self, name: str) -> None:
        """Says what is being worked on."""

    def inside(self, text: str) -> None:
        """Says how far what runs inside it is."""


class _Shown(Bar):
    def __init__(self, text: tqdm) -> None:
        self.text = text

    def update(self, n: int = 1) -> None:
        super().update(n)
        self.text.set_postfix_str("", refresh=False)  # what ran inside is over
        self.text.update(n)

    def stage(self, name: str) -> None:
        self.text.set_postfix_str("", refresh=False)
        self.text.set_description(name)

    def inside(self, text: str) -> None:
        if time.time() - self.text.start_t > self.text.delay:
            self.text.set_postfix_str(text)
            self.text.last_print_t = time.time()  # tqdm ends the line only of a bar it knows to be seen


class _Inner(Bar):
    def __init__(self, outer: Bar, total: int, name: str) -> None:
        self.outer, self.total, self.name = outer, total, name
        self.began = self.told = time.monotonic()

    def update(self, n: int = 1) -> None:
        super().update(n)
        self.inside("")

    def stage(self, name: str) -> None:
        self.name = name

    def inside(self, text: str) -> None:
        now = time.monotonic()
        if now - self.began > LONG_SECONDS and now - self.told > OFTEN:
            self.told = now
            self.outer.inside(f"{self.name} {self.n}/{self.total}{', ' * bool(text)}{text}")


@contextmanager
def bar(total: int, name: str, *, after: float | int | None = None) -> Iterator[Bar]:
    """A bar for a block that may take long. It ends with the block, however that ends.

    Shown ``after`` so many seconds, two unless given: what is quick shows nothing.

    Inside another bar, or inside ``quiet``, it makes none of its own.

    Example:
        >>> with bar(len(cells), "selection") as shown:
        ...     for cell in cells:
        ...         shown.update()
    """
    outer = _outer.get()
    if outer is not None:
        with _as_outer(Bar() if type(outer) is Bar else _Inner(outer, total, name)) as made:
            yield made
        return
    with (
        tqdm(total=total, desc=name, delay=LONG_SECONDS if after is None else after, file=sys.stderr) as text,
        _as_outer(_Shown(text)) as made,
    ):
        yield made


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """A block without any progress bar, whatever runs inside it; with ``progress=True`` it changes nothing.

    Example:
        >>> with rs.quiet():
        ...     choice = rs.select(model, found, prompts.select, refusal)
    """
    if progress:
        yield
        return
    with _as_outer(Bar()):
        yield


@contextmanager
def _as_outer(made: Bar) -> Iterator[Bar]:
    token = _outer.set(made)
    try:
        yield made
    finally:
        _outer.reset(token)
