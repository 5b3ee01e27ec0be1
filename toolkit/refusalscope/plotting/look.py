"""The look of the figures on one sheet: what each colour stands for, in colour and as a grey printer prints it."""

from __future__ import annotations

import io
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from refusalscope import canvas
from refusalscope.reprs import Shown, picture

CLAIM = "Theme: restricted prompts orange, harmless ones blue, placebos grey; each line with name and mark"
MEANINGS = (
    (canvas.ORANGE, "restricted prompts; what was chosen"),
    (canvas.BLUE, "harmless prompts; an estimate with its interval"),
    (canvas.FAINT, "placebos: what random subspaces reach"),
    (canvas.GREY, "what was not chosen; notes"),
    (canvas.INK, "text and frames"),
)


@dataclass(frozen=True, repr=False)
class Theme(Shown):
    """The sheet: as text what the colours stand for, as HTML the picture."""

    colours: dict[str, str]
    png: bytes = field(repr=False)

    def __repr__(self) -> str:
        return CLAIM

    def _repr_html_(self) -> str:
        return picture(self.png, CLAIM)


def show_theme() -> Theme:
    """Returns the look of the figures on one sheet: an example in colour and in grey, and what each colour stands for.

    Draw your own figures so with ``with rs.plotting.theme(): ...`` and the colours in ``show_theme().colours``.

    Example:
        >>> rs.show_theme()
        Theme: restricted prompts orange, harmless ones blue, placebos grey; each line with name and mark
    """
    with canvas.theme():
        figure, (colour, grey, key) = plt.subplots(
            3, 1, figsize=(canvas.COLUMN, 5.0), height_ratios=(1.3, 1.3, 1.1), squeeze=True
        )
        try:
            figure.suptitle("Every line has its name and its mark", x=0.02, ha="left")
            _example(colour, "in colour", grey=False)
            _example(grey, "as a grey printer prints it", grey=True)
            _key(key)
            figure.savefig(png := io.BytesIO(), format="png")
        finally:
            plt.close(figure)
    return Theme({meaning: ink for ink, meaning in MEANINGS}, png.getvalue())


def in_grey(ink: str) -> str:
    """Returns a colour as grey of the same luminance (Rec. 709, linear light)."""
    linear = [((x + 0.055) / 1.055) ** 2.4 if x > 0.04045 else x / 12.92 for x in to_rgb(ink)]
    light = float(np.dot((0.2126, 0.7152, 0.0722), linear))
    return str(round(1.055 * light ** (1 / 2.4) - 0.055 if light > 0.0031308 else 12.92 * light, 4))


def _example(axes: Axes, name: str, *, grey: bool) -> None:
    """Two lines with interval bands over a placebo band; made up, and the same each time."""
    dose = np.linspace(0, 1.5, 7)
    fall = 7 / (1 + np.exp(6 * (dose - 0.7))) - 2
    lines = {"restricted": (canvas.ORANGE, fall, 0.8), "harmless": (canvas.BLUE, np.full(7, -4.0) + 0.2 * dose, 0.5)}
    frame = pd.concat(
        pd.DataFrame({"dose": dose, "nats": y, "low": y - width, "high": y + width, "of": of})
        for of, (_, y, width) in lines.items()
    )
    inks: dict[Hashable, str] = {of: in_grey(ink) if grey else ink for of, (ink, _, _) in lines.items()}
    ends = canvas.curves(axes, frame, x="dose", y="nats", by="of", inks=inks, band=("low", "high"))
    ends += canvas.placebo_band(axes, (4.2, 5.6))
    axes.set(ylabel="margin (nats)", xlabel="dose")
    axes.set_title(name, loc="left", color=canvas.GREY)
    canvas.name_ends(axes, ends)


def _key(axes: Axes) -> None:
    """A dot in colour and in grey for each meaning, and the colours of further lines in their order."""
    axes.set(xlim=(0, 1), ylim=(len(MEANINGS) + 0.6, -0.6))
    axes.axis("off")
    for row, (ink, meaning) in enumerate(MEANINGS):
        axes.plot(0.02, row, "s", color=ink, ms=7)
        axes.plot(0.09, row, "s", color=in_grey(ink), ms=7)
        axes.text(0.14, row, meaning, va="center", fontsize=7)
    for place, ink in enumerate(canvas.PALETTE):
        axes.plot(0.02 + 0.045 * place, len(MEANINGS), "o", color=ink, ms=5)
    axes.text(0.02 + 0.045 * len(canvas.PALETTE), len(MEANINGS), "further lines, in order", va="center", fontsize=7)
