"""What ablating a subspace does: bypass, suppression and damage with intervals, beside placebos going the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope import stats
from refusalscope.errors import MeasurementError
from refusalscope.interventions import ablate
from refusalscope.metrics import kl, margin, margin_of, next_token
from refusalscope.model.chat import ChatModel
from refusalscope.model.refusal_tokens import RefusalTokens
from refusalscope.progress import bar
from refusalscope.prompts import Prompts
from refusalscope.reprs import Shown, facts
from refusalscope.stats import Estimate, PlaceboRank
from refusalscope.subspace import Subspace

TOGETHER = 16


@dataclass(frozen=True, repr=False, eq=False)
class Baseline(Shown):
    """A model before any intervention, on one split: what every effect is compared with.

    Attributes:
        restricted, harmless: margins in nats, one per prompt.
        harmless_base: log-probabilities of the first response token on harmless prompts.
    """

    model: ChatModel
    prompts: Prompts
    refusal: RefusalTokens
    restricted: Float[Tensor, " restricted"]
    harmless: Float[Tensor, " harmless"]
    harmless_base: Float[Tensor, "harmless vocab"]

    @property
    def gap(self) -> float:
        """m_R − m_H, the separation of mean margins in nats; suppression is measured in units of it."""
        return float(self.restricted.mean() - self.harmless.mean())

    @property
    def refused(self) -> Tensor:
        """True for restricted prompts whose margin is above zero."""
        return self.restricted > 0

    def __repr__(self) -> str:
        return f"Baseline of {self.model.origin.name} on {len(self.prompts)} prompts"


@dataclass(frozen=True, repr=False)
class Effect(Shown):
    """One intervention, measured. Damage is KL(base‖intervened) in nats on harmless prompts at the last position.

    Attributes:
        bypass: of the restricted prompts refused at baseline, the share with margin below zero.
        suppression: (m_R − m_R^τ) / (m_R − m_H); the denominator is held at its measured value.
        kl: mean damage; ``kl_median``, ``kl_p95`` and ``kl_top_share`` (the share one prompt carries) stand beside it.
        placebo: where bypass, suppression and KL rank among random subspaces of the same rank; empty if none ran.
    """

    what: str
    bypass: Estimate
    suppression: Estimate
    kl: Estimate
    kl_median: float
    kl_p95: float
    kl_top_share: float
    placebo: dict[str, PlaceboRank]

    def __repr__(self) -> str:
        return f"Effect of {self.what}"

    def _repr_html_(self) -> str:
        rows = {
            "bypass rate": str(self.bypass),
            "suppression": str(self.suppression),
            "KL(base‖intervened)": str(self.kl),
        }
        rows["KL median, 95th percentile, share of the top prompt"] = (
            f"{self.kl_median:.2g}, {self.kl_p95:.2g}, {self.kl_top_share:.0%}"
        )
        rows |= {f"{name}, among placebos": str(rank) for name, rank in self.placebo.items()}
        return facts(rows, caption=repr(self))


def baseline(model: ChatModel, prompts: Prompts, refusal: RefusalTokens) -> Baseline:
    """Returns margins and first-token log-probabilities before any intervention; one prompt-forward per prompt."""
    if not len(prompts.restricted) or not len(prompts.harmless):
        raise MeasurementError(f"A baseline needs restricted and harmless prompts; got {prompts!r}.")
    base = next_token(model, prompts.harmless)
    restricted = margin(model, prompts.restricted, refusal)
    return Baseline(model, prompts, refusal, restricted, margin_of(base, refusal.ids), base)


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
        MeasurementError: when no restricted prompt is refused at baseline, or the mean margins are not separated.
        InterventionError: when the ablation did not happen as declared.
    """
    _refuse_unguarded(before)
    with ablate(before.model, subspace, dose=dose, reference=reference):
        after = margin(before.model, before.prompts.restricted, before.refusal)
        damage = kl(before.model, before.prompts.harmless, before.harmless_base).double()
    given = isinstance(placebos, pd.DataFrame)
    table = placebos if given else placebo_effects(before, placebos, dose=dose, reference=reference)
    flags = (after < 0)[before.refused]
    refused_clusters = [
        c for c, kept in zip(before.prompts.restricted.clusters, before.refused.tolist(), strict=True) if kept
    ]
    change = ((before.restricted - after) / before.gap).double()
    found = {"bypass": float(flags.double().mean()), "suppression": float(change.mean()), "kl": float(damage.mean())}
    return Effect(
        what=f"ablating the {subspace!r}",
        bypass=stats.rate(flags.numpy(), clusters=refused_clusters),
        suppression=stats.mean(change.numpy(), clusters=before.prompts.restricted.clusters),
        kl=stats.mean(damage.numpy(), clusters=before.prompts.harmless.clusters, unit="nats"),
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
    _refuse_unguarded(before)
    rows = []
    with bar(len(subspaces), "placebos") as shown:
        for start in range(0, len(subspaces), TOGETHER):
            together = subspaces[start : start + TOGETHER]
            with ablate(before.model, together, dose=dose, reference=reference):
                after = margin(before.model, before.prompts.restricted, before.refusal, copies=len(together))
                damage = kl(before.model, before.prompts.harmless, before.harmless_base, copies=len(together))
            for margins, nats in zip(after.reshape(len(together), -1), damage.reshape(len(together), -1), strict=True):
                bypass = float((margins < 0)[before.refused].double().mean())
                suppression = float((before.restricted - margins).mean()) / before.gap
                rows.append((bypass, suppression, float(nats.mean()), float(margins.mean())))
            shown.update(len(together))
    return pd.DataFrame(rows, columns=["bypass", "suppression", "kl", "margin"])


def _refuse_unguarded(before: Baseline) -> None:
    if not bool(before.refused.any()) or not before.gap > 0:
        raise MeasurementError(
            f"{before.model.origin.name} refuses {int(before.refused.sum())} of {len(before.restricted)} restricted "
            f"prompts and its mean margins differ by {before.gap:.2f} nats: there is no guardrail here to measure."
        )


def _ranks(found: dict[str, float], placebos: pd.DataFrame) -> dict[str, PlaceboRank]:
    return {name: stats.placebo_rank(value, placebos[name].to_numpy()) for name, value in found.items()}


def mean_margin(values: Float[Tensor, " prompt"], prompts: Prompts) -> Estimate:
    """Returns the mean margin of some prompts in nats, with an interval clustered by phrasing."""
    return stats.mean(torch.as_tensor(values).double().numpy(), clusters=prompts.clusters, unit="nats")
