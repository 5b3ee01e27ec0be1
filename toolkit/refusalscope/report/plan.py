"""Plans: how much a card measures. The full one answers every question, the quick one says what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass

from refusalscope.optionality import ADAPTIVE, FULL, KAPPA, Menu
from refusalscope.reprs import Shown

ADDED = (
    "the best of other locators (whitened, logistic, paired, standardised, winsorised), of two, four and eight "
    "dimensions, of directions of each layer's own, of differences in means inside fixed openings, and what gradients "
    "find: directions, spans, concept cones and interchange"
)
ADAPTIVE_PLACEBOS = 499  # beside some 24 subspaces, fewer than 457 cannot show anything at the 5% level


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """What a card measures beside the selection rule's choice.

    Attributes:
        name: ``full``, ``quick``, ``adaptive``, ``budget``, or ``own`` for anything else; the card says which.
        menu: ranks, doses and scopes of the attack family.
        placebos: random subspaces beside the family's worst case.
        curves: which curves are drawn.
        per_label: report prompts of each label that curves are measured on; transfer takes four times as many.
        curve_placebos: placebos beside the rule's choice, and at every point of a curve.
        transfer: whether transfer matrices are filled.
        monitor: whether a monitor is fitted, and tried with the rule's choice ablated.
        validity: select prompts of each label at the most on which the readout is held against whole replies.
        rule: whether the selection rule chooses a cell, whose effect and curves are measured.
        kappa: damage limit in nats: of the verdict and, as ``kl_limit``, of the selection rule.
    """

    name: str = "own"
    menu: Menu = FULL
    placebos: int = 199
    curves: tuple[str, ...] = ("dose", "rank", "prompt budget", "layer scope", "opening depth")
    per_label: int = 16
    curve_placebos: int = 39
    transfer: bool = True
    monitor: bool = True
    validity: int = 64
    rule: bool = True
    kappa: float = KAPPA

    @property
    def stages(self) -> int:
        """How many stages a measurement goes through at most: the last is the diagnosis, where one is wanted."""
        return 10 + len(self.curves) + self.transfer + self.monitor

    @property
    def left_out(self) -> tuple[str, ...]:
        """What this plan does not measure, a sentence each."""
        if self.name == "budget":
            return ()  # said by what fitted it
        missing = [f"{name} curve" for name in Plan.curves if name not in self.curves]
        missing += [] if self.transfer else ["transfer"]
        missing += [] if self.monitor else ["monitor"]
        return tuple(f"{what}: not part of the {self.name} plan" for what in missing)

    @property
    def family(self) -> str:
        """The attack family in words."""
        doses = ", ".join(f"{dose:g}" for dose in self.menu.doses)
        scopes = ", ".join("every layer" if s is None else f"layers {s[0]}–{s[1]}" for s in self.menu.scopes)
        best = "all" if self.menu.best is None else f"best {self.menu.best}"
        ranked = "" if self.menu.cells is None else f", of about {self.menu.cells} ranked,"
        spans = f", and the {best} spans of two or three of them" if self.menu.spans else ""
        plain = f"differences in means at the {best} cells{ranked} of the locate split{spans}; doses {doses}; {scopes}"
        return f"{plain}; and, located on this model too, {ADDED}" if self.menu.adaptive else plain


FULL_PLAN = Plan("full")
QUICK_PLAN = Plan(
    "quick",
    menu=Menu(best=1, doses=(0.75, 1.0, 1.5)),
    placebos=19,
    curves=("dose",),
    per_label=8,
    curve_placebos=9,
    transfer=False,
)
ADAPTIVE_PLAN = Plan("adaptive", menu=ADAPTIVE, placebos=ADAPTIVE_PLACEBOS)
PLANS = {plan.name: plan for plan in (ADAPTIVE_PLAN, FULL_PLAN, QUICK_PLAN)}
