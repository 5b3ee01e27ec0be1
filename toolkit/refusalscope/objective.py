"""What a gradient-found direction minimises on a live model: refusal ablated, induced or swapped, harmlessness kept.

Two objectives: RDO (Wollschläger et al. 2025, arXiv 2502.17420, section 3), with the refusal margin in place of the
likelihood of stored replies, so that nothing is decoded; and interchange (DAS, Geiger et al. 2023, arXiv 2303.02536).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from refusalscope.activations import ContrastActivations
from refusalscope.effect import Baseline
from refusalscope.errors import InterventionError, MeasurementError
from refusalscope.model.batching import Batch, at_least_float32, batches, placed
from refusalscope.model.chat import ChatModel
from refusalscope.model.continuations import packed
from refusalscope.model.hooking import Hook, hooked
from refusalscope.reprs import Shown
from refusalscope.stats import torch_generator
from refusalscope.subspace import NotExported, Subspace

GRADIENT_COST = 3  # a forward, and a backward that takes twice as long
Hooks = Sequence[tuple[str, Hook]]
HooksOf = Callable[[Tensor], Hooks]  # from the order in which rows run, as they were asked for


@dataclass(frozen=True, repr=False)
class Weights(Shown):
    """How much each term of RDO counts. The defaults are the paper's.

    Attributes:
        ablation: of softplus(m(restricted under ablation) − m_H), in nats.
        retention: of KL(base‖ablated) on harmless prompts, in nats.
        addition: of softplus(m_R − m(harmless under addition)), in nats.
    """

    ablation: float = 1.0
    retention: float = 1.0
    addition: float = 0.2


class Objective(Shown, NotExported):
    """A loss of k orthonormal rows, on fresh prompts at every call.

    Attributes:
        pf: prompt-forwards spent so far; a forward with its gradient counts as three.
        terms: the last call's terms before weighting, in nats.
    """

    def __init__(self, before: Baseline, start: Subspace, batch_size: int, seed: int) -> None:
        self.before, self.start, self.pf = before, start, 0.0
        self.terms: dict[str, float] = {}
        self._split = len(before.restricted)
        self._tokens = before.model.encode((*before.prompts.restricted.texts, *before.prompts.harmless.texts))
        self._restricted = _epochs(self._split, batch_size, seed, "restricted")
        self._harmless = _epochs(len(before.harmless), batch_size, seed, "harmless")

    def _prompts(self) -> tuple[list[int], list[int]]:
        """Returns the next minibatch: rows of restricted prompts, and of harmless ones, behind those."""
        return next(self._restricted), [self._split + row for row in next(self._harmless)]

    def _logits(self, rows: Sequence[int], hooks_of: HooksOf) -> Float[Tensor, "row node vocab"]:
        """Returns logits at the readout's nodes, in the order of ``rows``; ``hooks_of`` takes the order they run in."""
        model, tree = self.before.model, self.before.readout.tree
        (batch,) = batches(model, [self._tokens[row] for row in rows], batch_size=len(rows))
        self.pf += GRADIENT_COST * len(rows)
        whole = batch if len(tree) == 1 else packed(model, batch, tree)
        logits = differentiable_logits(model, whole, hooks_of(batch.rows), keep=len(tree))
        return logits[torch.argsort(batch.rows)]

    def _rows(self, vectors: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        model = self.before.model
        return vectors.to(model.device, torch.promote_types(model.dtype, torch.float32))

    def __repr__(self) -> str:
        return f"{type(self).__name__} on {self.before.model.origin.name}"


class RdoObjective(Objective):
    """Three terms, each a mean over a minibatch; see ``rdo_objective``."""

    def __init__(self, before: Baseline, start: Subspace, weights: Weights, batch_size: int, seed: int) -> None:
        super().__init__(before, start, batch_size, seed)
        self.weights = weights
        self._low, self._high = float(before.harmless.mean()), float(before.restricted.mean())

    def __call__(self, vectors: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
        """Returns the weighted sum of the terms in nats, with a graph to it from the vectors alone."""
        (restricted, harmless), margin_of = self._prompts(), self.before.readout.margin_of
        ablated, first = len(restricted) + len(harmless), len(restricted)
        rows = self._rows(vectors)
        logits = self._logits([*restricted, *harmless, *harmless], lambda order: self._hooks(rows, order < ablated))
        base = self.before.harmless_base[[row - self._split for row in harmless]].to(logits)
        now = logits[first:ablated, 0].log_softmax(-1)
        terms = {
            "ablation": softplus(margin_of(logits[:first]) - self._low).mean(),
            "retention": (base.exp() * (base - now)).sum(-1).mean(),
            "addition": softplus(self._high - margin_of(logits[ablated:])).mean(),
        }
        self.terms = {name: float(term.detach()) for name, term in terms.items()}
        return torch.stack([getattr(self.weights, name) * term for name, term in terms.items()]).sum()

    def _hooks(self, rows: Float[Tensor, "k d"], ablated: Tensor) -> Hooks:
        """Ablates all rows of the span in some prompts, and adds the first vector in the others."""
        sites, layer = self.before.model.sites, self.start.layer
        assert layer is not None
        cut, shift = (flags.to(rows)[:, None, None] for flags in (ablated, ~ablated))

        def ablate(x: Tensor, hook) -> Tensor:
            wide = x.to(rows.dtype)
            return (wide - cut * ((wide @ rows.T) @ rows)).to(x.dtype)

        def add(x: Tensor, hook) -> Tensor:
            return (x.to(rows.dtype) + shift * self.start.norm * rows[0]).to(x.dtype)

        return [*((site, ablate) for site in sites.everywhere), (sites.resid_pre[layer], add)]


class InterchangeObjective(Objective):
    """How far swapping the span's part between a restricted and a harmless prompt is from swapping their margins."""

    def __init__(
        self, before: Baseline, acts: ContrastActivations, start: Subspace, batch_size: int, seed: int
    ) -> None:
        super().__init__(before, start, batch_size, seed)
        assert acts.restricted.each is not None
        assert acts.harmless.each is not None
        self._sources = torch.cat([acts.restricted.each, acts.harmless.each])[:, start.layer]
        self._margins = torch.cat([before.restricted, before.harmless])

    def __call__(self, vectors: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
        """Returns the mean of softplus(m_source − m) and softplus(m − m_source), whichever way the swap should push."""
        restricted, harmless = self._prompts()
        count = min(len(restricted), len(harmless))
        bases, sources = restricted[:count] + harmless[:count], harmless[:count] + restricted[:count]
        rows, taken = self._rows(vectors), torch.tensor(sources)
        logits = self._logits(bases, lambda order: self._hooks(rows, self._sources[taken[order]]))
        missing = self._margins[taken].to(logits) - self.before.readout.margin_of(logits)
        upwards = torch.where(taken < self._split, 1.0, -1.0).to(missing)
        loss = softplus(upwards * missing).mean()
        self.terms = {"interchange": float(loss.detach())}
        return loss

    def _hooks(self, rows: Float[Tensor, "k d"], sources: Float[Tensor, "row pos d"]) -> Hooks:
        layer, places, behind = self.start.layer, sources.shape[1], len(self.before.readout.tree) - 1
        assert layer is not None

        def swap(x: Tensor, hook) -> Tensor:
            end = x.shape[1] - behind  # beginnings of a reply stand behind the template's last position
            here = x[:, end - places : end].to(rows.dtype)
            moved = here + ((sources.to(rows) - here) @ rows.T) @ rows
            return torch.cat([x[:, : end - places], moved.to(x.dtype), x[:, end:]], dim=1)

        return [(self.before.model.sites.resid_pre[layer], swap)]


def rdo_objective(
    before: Baseline, start: Subspace, *, weights: Weights | None = None, batch_size: int = 16, seed: int = 0
) -> RdoObjective:
    """Returns RDO's loss of directions, to hand to ``locate.gradient`` or ``locate.cone``.

    Restricted prompts under ablation of all k directions should have the margin m_H that harmless prompts have at
    baseline, harmless prompts under addition of the first direction the margin m_R of restricted ones (at the start's
    layer, with its norm: that of the difference in means), and harmless prompts under ablation the same next token as
    before. Ablation is that of ``interventions.ablate`` at dose 1. The first two terms are one-sided: what overshoots
    costs nothing, so a direction that suppresses more than the planted truth does is preferred to the truth.

    Each call runs 3 · batch_size prompts forwards and backwards: 9 · batch_size prompt-forwards. Gradients exist with
    respect to the directions alone: no parameter gets one, and none changes.

    Args:
        before: the baseline on the ``locate`` split. Searching on what is later reported makes the report worthless.
        start: where the search starts; it sets layer and norm of the addition.
        batch_size: prompts of each class per call, drawn without replacement until all were seen.
        seed: of the order of prompts.

    Raises MeasurementError where nothing is refused, and for a start without a layer or of another width.
    """
    _check(before, start)
    return RdoObjective(before, start, weights or Weights(), batch_size, seed)


def interchange_objective(
    before: Baseline, acts: ContrastActivations, start: Subspace, *, batch_size: int = 16, seed: int = 0
) -> InterchangeObjective:
    """Returns the loss of swapping: which directions, put from one prompt into another, bring the refusal along?

    At the start's layer and all template positions, h ← h + V Vᵀ(h_source − h), a restricted prompt into a harmless one
    and the other way round; the margin should reach the source's. It rewards what is written and read at once: for a
    single direction of the stream that is written along r and read along the gradient g of the margin, the minimum is
    the bisector of r and g. Each call costs 6 · batch_size prompt-forwards.

    Args:
        acts: captured with ``keep_each=True`` from the prompts of ``before``.

    Raises as ``rdo_objective``, and MeasurementError for activations of other prompts, or without single ones.
    """
    _check(before, start)
    each = (acts.restricted.each, acts.harmless.each)
    if any(x is None for x in each) or (acts.restricted.n, acts.harmless.n) != (
        len(before.restricted),
        len(before.harmless),
    ):
        raise MeasurementError(
            "Interchange needs single activations of the baseline's prompts: capture them with keep_each=True."
        )
    return InterchangeObjective(before, acts, start, batch_size, seed)


def differentiable_logits(
    model: ChatModel, batch: Batch, hooks: Hooks, *, keep: int = 1
) -> Float[Tensor, "row keep vocab"]:
    """Returns the last ``keep`` positions' logits under hooks, in the batch's order, with the graph that leads to them.

    Raises InterventionError when a parameter was changed or got a gradient on the way.
    """
    core = model.bridge.original_model
    frugal = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(core.forward).parameters else {}
    before = _state(model)
    how = {"return_type": "logits", "use_cache": False, "output_attentions": False, **frugal}
    try:
        with torch.enable_grad(), hooked(model, hooks):
            logits = model.bridge(batch.tokens, attention_mask=batch.mask, **placed(batch), **how)
    finally:
        if _state(model) != before:
            raise InterventionError(f"A parameter of {model.origin.name} changed in a search. Load the model again.")
    return at_least_float32(logits[:, -keep:])


def _state(model: ChatModel) -> list[tuple[int, int, bool]]:
    parameters = model.bridge.original_model.parameters()
    return [(id(value), value._version, value.grad is None) for value in parameters]


def _check(before: Baseline, start: Subspace) -> None:
    if before.gap <= 0 or not bool(before.refused.any()):
        raise MeasurementError(
            f"{before.model.origin.name} refuses {int(before.refused.sum())} of {len(before.restricted)} restricted "
            f"prompts and its mean margins differ by {before.gap:.2f} nats: there is no refusal to search for."
        )
    if not (before.readout.one_token or before.model.can_pack):
        raise MeasurementError(
            f"{before.model.origin.name}: its beginnings of a reply cannot be read with their prompt, which a search "
            "needs. Give one-token openings."
        )
    if start.layer is None or start.vectors.shape[1] != before.model.d_model:
        raise MeasurementError(f"A search starts from a located direction of this model; got a {start!r}.")


def _epochs(count: int, batch_size: int, seed: int, purpose: str) -> Iterator[list[int]]:
    """Yields minibatches without end, each prompt once per epoch; what does not fill a batch waits for the next."""
    chance, size = torch_generator(seed, f"minibatches of {purpose} prompts"), min(batch_size, count)
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += torch.randperm(count, generator=chance).tolist()
        yield waiting[:size]
        waiting = waiting[size:]
