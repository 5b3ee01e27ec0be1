"""A subspace of each layer's own: how the stream that a layer reads loses that layer's directions, at any dose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import InterventionError
from refusalscope.model.chat import ChatModel
from refusalscope.projection import blocks, inside

Edit = Callable[[Tensor], Tensor]
Sites = Mapping[int, tuple[str, Sequence[str]]]  # of each layer: where the stream enters it, and what comes later


class LayerByLayer:
    """Edits that leave, in the stream every layer reads, (1 − λ) of what was written along that layer's own U.

    With h what is there on entering layer l and m what earlier edits took out, so that h + m is the sum of all writes,

        h ← h − U Uᵀ(h − (1 − λ)(h + m)),    w ← w − λ U Uᵀ w    for each write w of the layer.

    So doses do not compound from layer to layer: where all U are one, nothing is left to do on entering, and this is
    plain ablation at every dose. At λ = 1, h ← h − U Uᵀ h. What one layer lost is not given back to the next.

    Args:
        bases: U of every layer, ``[d, k]``, or ``[candidate, d, k]`` for one in each block of rows.
        sites: of the same layers. Where writes do not sum to the stream, m is not known, and the dose must be 0 or 1.
    """

    def __init__(self, bases: Mapping[int, Tensor], sites: Sites, dose: float) -> None:
        self._bases, self._dose, self._first = bases, dose, min(bases)
        self._missing: Tensor | None = None
        self.edits: dict[str, Edit] = {}
        for layer, (entering, later) in sites.items():
            self.edits[entering] = self._entering(layer)
            self.edits |= dict.fromkeys(later, self._writing(layer))

    def _entering(self, layer: int) -> Edit:
        def edit(x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
            basis = self._bases[layer].to(x.device)
            vectors = blocks(x, basis)
            if layer == self._first:
                self._missing = None  # a forward begins
            part = self._dose * inside(vectors, basis)
            if self._missing is not None:
                part = part - (1 - self._dose) * inside(self._missing, basis)
            return self._without(x, vectors, part @ basis.mT)

        return edit

    def _writing(self, layer: int) -> Edit:
        def edit(x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
            basis = self._bases[layer].to(x.device)
            vectors = blocks(x, basis)
            return self._without(x, vectors, self._dose * inside(vectors, basis) @ basis.mT)

        return edit

    def _without(self, x: Tensor, vectors: Tensor, removed: Tensor) -> Tensor:
        if self._dose not in (0.0, 1.0):  # at these two it is of no consequence
            self._missing = removed if self._missing is None else self._missing + removed
        return (vectors - removed).reshape(x.shape).to(x.dtype)


def edited_sites(model: ChatModel, first: int, last: int, *, dose: float) -> tuple[str, list[str]]:
    """Returns the site where the stream enters the scope, and the later ones at which it is written or read."""
    sites, layers = model.sites, slice(first, last + 1)
    if sites.additive:
        return sites.resid_pre[first], [
            site for pair in zip(sites.attn_out[layers], sites.mlp_out[layers], strict=True) for site in pair
        ]
    if dose not in (0.0, 1.0):
        raise InterventionError(
            f"{model.origin.name}: the writes found do not sum to the residual stream, so a dose of {dose} "
            "would be applied again at every site. Use dose 1 (or 0)."
        )
    columns = [column[layers] for column in (sites.resid_pre, sites.resid_mid, sites.resid_post) if column]
    every = [site for layer in zip(*columns, strict=True) for site in layer]
    return every[0], every[1:]
