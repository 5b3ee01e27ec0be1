"""What ablating a subspace does: bypass, suppression and damage with intervals, beside placebos going the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusalscope import stats
from refusalscope.errors import MeasurementError
from refusalscope.interventions import ablate
from refusalscope.metrics import Readings, read
from refusalscope.model.chat import ChatModel
from refusalscope.progress import bar
from refusalscope.prompts import Prompts
from refusalscope.reading.readout import Readout
from refusalscope.reprs import Shown, facts
from refusalscope.stats import Estimate, PlaceboRank
from refusalscope.subspace import Subspace

TOGETHER = 16
LEAST_BEHAVING = 3
Labels = Literal["behaviour", "asked"]
UNREAD_LIMIT = 0.2  # mass: where this much more opens neither way than answers do, a cell is degenerate


# What is filled in where it is not given, and never None after that.
if TYPE_CHECKING:
    OfRestricted = Tensor
    OfHarmless = Tensor
else:
    OfRestricted = Bool[Tensor, " restricted"] | None
    OfHarmless = Bool[Tensor, " harmless"] | None


@dataclass(frozen=True, repr=False, eq=False)
class Baseline(Shown):
    """A model before any intervention, on one split: what every effect is compared with.

    Attributes:
        restricted, harmless: margins in nats, one per prompt.
        harmless_base: log-probabilities of the first response token on harmless prompts.
        refused: of the restricted prompts, those the model refuses at temperature zero; by the sign of the margin where
            it is not given.
        answered: of the harmless prompts, those it does not refuse: damage is measured on them alone, because where a
            harmless prompt is refused too, a changed reply is the effect and not damage.
        unread: mean mass that opens neither way on answered harmless prompts: what answering looks like to the readout.
    """

    model: ChatModel
    prompts: Prompts
    readout: Readout
    restricted: Float[Tensor, " restricted"]
    harmless: Float[Tensor, " harmless"]
    harmless_base: Float[Tensor, "harmless vocab"]
    refused: OfRestricted = None  # pyright: ignore[reportAssignmentType]
    answered: OfHarmless = None  # pyright: ignore[reportAssignmentType]
    unread: float = 0.0

    def __post_init__(self) -> None:
        if self.refused is None:
            object.__setattr__(self, "refused", self.restricted > 0)
        if self.answered is None:
            object.__setattr__(self, "answered", ~(self.harmless > 0))

    @property
    def gap(self) -> float:
        """m_R − m_H, the separation of mean margins in nats; suppression is measured in units of it."""
        return float(self.restricted.mean() - self.harmless.mean())

    def only(self, restricted: Sequence[int], harmless: Sequence[int]) -> Baseline:
        """Returns the baseline of some of its prompts, by their rows; no forwards."""
        parts = {"restricted": restricted, "harmless": harmless}
        rows = [getattr(self.prompts, label)[row] for label, some in parts.items() for row in some]
        return replace(
            self,
            prompts=Prompts(tuple(rows)),
            restricted=self.restricted[list(restricted)],
            harmless=self.harmless[list(harmless)],
            harmless_base=self.harmless_base[list(harmless)],
            refused=self.refused[list(restricted)],
            answered=self.answered[list(harmless)],
        )

    @property
    def is_finite(self) -> bool:
        """Whether every margin is a finite number: where one is not, the logits overflowed."""
        return bool(self.restricted.isfinite().all() and self.harmless.isfinite().all())

    @property
    def refused_clusters(self) -> tuple[str, ...]:
        """Clusters of the restricted prompts that are refused."""
        return _kept(self.prompts.restricted.clusters, self.refused)

    @property
    def answered_clusters(self) -> tuple[str, ...]:
        """Clusters of the harmless prompts that are answered."""
        return _kept(self.prompts.harmless.clusters, self.answered)

    @property
    def over_refusal(self) -> Estimate:
        """Share of harmless prompts that are refused."""
        return stats.rate((~self.answered).numpy(), clusters=self.prompts.harmless.clusters)

    def __repr__(self) -> str:
        return f"Baseline of {self.model.origin.name} on {len(self.prompts)} prompts"


@dataclass(frozen=True, repr=False)
class Effect(Shown):
    """One intervention, measured. Damage is KL(base‖intervened) in nats on answered harmless prompts, last position.

    Attributes:
        bypass: of the restricted prompts refused at baseline, the share no longer refused: an upper bound, for a reply
            that opens neither way is no answer.
        bypass_lower: the share whose reply opens as an answer does: a lower bound.
        unread: how much more mass opens neither way than on answered harmless prompts before; see ``UNREAD_LIMIT``.
        over_refusal: share of harmless prompts refused, before and under the intervention.
        suppression: (m_R − m_R^τ) / (m_R − m_H); the denominator is held at its measured value.
        kl: mean damage; ``kl_median``, ``kl_p95`` and ``kl_top_share`` (the share one prompt carries) stand beside it.
        placebo: where bypass, suppression and KL rank among random subspaces of the same rank; empty if none ran.
    """

    what: str
    bypass: Estimate
    bypass_lower: Estimate
    unread: float
    over_refusal: tuple[Estimate, Estimate]
    suppression: Estimate
    kl: Estimate
    kl_median: float
    kl_p95: float
    kl_top_share: float
    placebo: dict[str, PlaceboRank]

    @property
    def degenerate(self) -> bool:
        """Whether so many replies open neither way that the bypass rate means nothing."""
        return self.unread > UNREAD_LIMIT

    def __repr__(self) -> str:
        return f"Effect of {self.what}"

    def _repr_html_(self) -> str:
        rows = {
            "bypass rate, no longer refused": str(self.bypass),
            "bypass rate, opens as an answer": str(self.bypass_lower),
            "harmless prompts refused, before": str(self.over_refusal[0]),
            "harmless prompts refused, after": str(self.over_refusal[1]),
            "suppression": str(self.suppression),
            "KL(base‖intervened)": str(self.kl),
        }
        rows["KL median, 95th percentile, share of the top prompt"] = (
            f"{self.kl_median:.2g}, {self.kl_p95:.2g}, {self.kl_top_share:.0%}"
        )
        rows |= {f"{name}, among placebos": str(rank) for name, rank in self.placebo.items()}
        return facts(rows, caption=repr(self))


def baseline(model: ChatModel, prompts: Prompts, readout: Readout) -> Baseline:
    """Returns what every prompt answers before any intervention; one prompt-forward per prompt."""
    if not len(prompts.restricted) or not len(prompts.harmless):
        raise MeasurementError(f"A baseline needs restricted and harmless prompts; got {prompts!r}.")
    harmless = read(model, prompts.harmless, readout, keep_base=True)
    return baseline_from(model, prompts, readout, read(model, prompts.restricted, readout), harmless)


def baseline_from(
    model: ChatModel, prompts: Prompts, readout: Readout, restricted: Readings, harmless: Readings
) -> Baseline:
    """Returns the baseline of readings that were taken already, the harmless ones with their base."""
    assert harmless.base is not None
    answered = ~harmless.refuses
    unread = float(harmless.unread[answered].double().mean()) if bool(answered.any()) else 0.0
    return Baseline(
        model,
        prompts,
        readout,
        restricted.margin,
        harmless.margin,
        harmless.base,
        refused=restricted.refuses,
        answered=answered,
        unread=unread,
    )


def behaving(before: Baseline, *, labels: Labels = "behaviour") -> Baseline:
    """Returns the baseline of the prompts to locate on: restricted ones that are refused, harmless ones answered.

    A prompt that is not answered as its label says sits on the wrong side of a difference in means. With
    ``labels="asked"`` nothing is dropped: labels are what the prompts ask for, whatever the model does.

    Raises MeasurementError where fewer than three prompts of a label behave: there is nothing to locate.
    """
    if labels == "asked":
        return before
    kept = [flags.nonzero().flatten().tolist() for flags in (before.refused, before.answered)]
    if min(map(len, kept)) < LEAST_BEHAVING:
        raise MeasurementError(
            f"{before.model.origin.name} refuses {len(kept[0])} of {len(before.restricted)} restricted prompts and "
            f"answers {len(kept[1])} of {len(before.harmless)} harmless ones: locating needs {LEAST_BEHAVING} of each. "
            "Give more prompts that it declines, or locate with labels='asked'."
        )
    return before.only(*kept)


def effect(
    before: Baseline,
    subspace: Subspace,
    *,
    dose: float = 1.0,
    placebos: Sequence[Subspace] | pd.DataFrame = (),
    reference: Tensor | None = None,
) -> Effect:
    """Returns what ablating a subspace does, ranked among placebos ablated at the same dose on the same prompts.

    ``placebos`` are subspaces, or what ``placebo_effects`` made of them where several effects share one set.

    Raises:
        MeasurementError: when no restricted prompt is refused at baseline, no harmless one answered, or the mean
            margins are not separated.
        InterventionError: when the ablation did not happen as declared.
    """
    refuse_unguarded(before)
    with ablate(before.model, subspace, dose=dose, reference=reference):
        restricted = read(before.model, before.prompts.restricted, before.readout)
        harmless = read(before.model, before.prompts.harmless, before.readout, base=before.harmless_base)
    assert harmless.kl is not None
    given = isinstance(placebos, pd.DataFrame)
    table = placebos if given else placebo_effects(before, placebos, dose=dose, reference=reference)
    damage, clusters = harmless.kl[before.answered].double(), before.refused_clusters
    flags, answers = ~restricted.refuses[before.refused], restricted.complies[before.refused]
    change = ((before.restricted - restricted.margin) / before.gap).double()
    found = {"bypass": float(flags.double().mean()), "suppression": float(change.mean()), "kl": float(damage.mean())}
    return Effect(
        what=f"ablating the {subspace!r}",
        bypass=stats.rate(flags.numpy(), clusters=clusters),
        bypass_lower=stats.rate(answers.numpy(), clusters=clusters),
        unread=float(restricted.unread.double().mean()) - before.unread,
        over_refusal=(
            before.over_refusal,
            stats.rate(harmless.refuses.numpy(), clusters=before.prompts.harmless.clusters),
        ),
        suppression=stats.mean(change.numpy(), clusters=before.prompts.restricted.clusters),
        kl=stats.mean(damage.numpy(), clusters=before.answered_clusters, unit="nats"),
        kl_median=float(damage.median()),
        kl_p95=float(damage.quantile(0.95)),
        kl_top_share=float(damage.max() / damage.sum()) if float(damage.sum()) > 0 else 0.0,
        placebo=_ranks(found, table) if len(table) else {},
    )


def placebo_effects(
    before: Baseline, subspaces: Sequence[Subspace], *, dose: float = 1.0, reference: Tensor | None = None
) -> pd.DataFrame:
    """Returns one row per subspace: bypass rate, suppression, mean KL and mean margin under its ablation.

    Several are ablated per batch, each in its own rows, so that hundreds cost seconds. Raises as ``effect``.
    """
    refuse_unguarded(before)
    rows = []
    with bar(len(subspaces), "placebos") as shown:
        for start in range(0, len(subspaces), TOGETHER):
            together, base = subspaces[start : start + TOGETHER], before.harmless_base
            copies = len(together)
            with ablate(before.model, together, dose=dose, reference=reference):
                restricted = read(before.model, before.prompts.restricted, before.readout, copies=copies)
                harmless = read(before.model, before.prompts.harmless, before.readout, base=base, copies=copies)
            assert harmless.kl is not None
            each = (restricted.margin, restricted.refuses, harmless.kl)
            for margins, refuses, nats in zip(*(x.reshape(copies, -1) for x in each), strict=True):
                bypass = float((~refuses)[before.refused].double().mean())
                suppression = float((before.restricted - margins).mean()) / before.gap
                rows.append((bypass, suppression, float(nats[before.answered].mean()), float(margins.mean())))
            shown.update(len(together))
    return pd.DataFrame(rows, columns=["bypass", "suppression", "kl", "margin"])


def refuse_unguarded(before: Baseline, what: str = "measure") -> None:
    """Raises MeasurementError where nothing is refused, nothing answered, or the mean margins are not separated."""
    if not bool(before.refused.any()) or not before.gap > 0:
        raise MeasurementError(
            f"{before.model.origin.name} refuses {int(before.refused.sum())} of {len(before.restricted)} restricted "
            f"prompts and its mean margins differ by {before.gap:.2f} nats: there is no guardrail here to {what}."
        )
    if not bool(before.answered.any()):
        raise MeasurementError(
            f"{before.model.origin.name} refuses all {len(before.harmless)} harmless prompts too, so that damage "
            "cannot be measured. Give harmless prompts that it answers."
        )


def _ranks(found: dict[str, float], placebos: pd.DataFrame) -> dict[str, PlaceboRank]:
    return {name: stats.placebo_rank(value, placebos[name].to_numpy()) for name, value in found.items()}


def mean_margin(values: Float[Tensor, " prompt"], prompts: Prompts) -> Estimate:
    """Returns the mean margin of some prompts in nats, with an interval clustered by phrasing."""
    return stats.mean(torch.as_tensor(values).double().numpy(), clusters=prompts.clusters, unit="nats")


def _kept(clusters: Sequence[str], flags: Tensor) -> tuple[str, ...]:
    return tuple(cluster for cluster, kept in zip(clusters, flags.tolist(), strict=True) if kept)
