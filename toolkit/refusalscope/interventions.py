"""Interventions: forward hooks inside a ``with`` block, verified on the way out. No weight is ever written.

Ablation projects a subspace out of every write to the residual stream, so that the stream itself never holds it:
``h ← h − λ U Uᵀ(h − c)`` where the stream enters the first layer of the scope, ``w ← w − λ U Uᵀ w`` at every later
write. Because the stream is the sum of its writes, a dose λ leaves exactly (1 − λ) of what was there plus λ of the
reference c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import ContractError, InterventionError
from refusalscope.layered import LayerByLayer, edited_sites
from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import counted, hooked, uninterrupted
from refusalscope.projection import blocks, held, inside, wide
from refusalscope.receipt import Receipt
from refusalscope.subspace import Ablatable, LayeredSubspace, Subspace

Edit = Callable[[Tensor], Tensor]
Residue = Callable[[str, Tensor], Tensor]
Made = tuple[dict[str, Edit], tuple[str, ...], Residue]  # edits, sites to check, and how
DECODERS = ("generate", "generate_stream", "hf_generate", "diffusion_generate", "generate_batch")
NO_DECODING = (
    "An intervened model is never decoded (RESPONSIBLE_USE.md, C3): leave the intervention first, or score logits."
)


@contextmanager
def ablate(
    model: ChatModel,
    subspace: Ablatable | Sequence[Ablatable],
    *,
    dose: float = 1.0,
    reference: Float[Tensor, " d"] | None = None,
    layers: tuple[int, int] | None = None,
) -> Iterator[Receipt]:
    """Ablates a subspace while the block runs; yields a receipt of what fired where.

    Args:
        model: whose forwards are edited.
        subspace: what to ablate. A sequence ablates a different one in each block of rows, candidate-major: the batch
            must then hold the same prompts once per subspace (``copies`` of the metrics does that). A
            ``LayeredSubspace`` takes from the stream that each layer reads what is that layer's own (``layered``).
        dose: λ; 0 changes nothing bit for bit, 1 removes the subspace.
        reference: c, a vector ``[d]`` such as the harmless mean at the located cell (affine ablation, Marshall et al.
            2024); None means zero. Not for a ``LayeredSubspace``.
        layers: first and last layer of the scope, inclusive; None means all.

    Raises:
        InterventionError: on leaving, if a hook did not fire on every forward, if the residual stream still held the
            subspace at dose 1, or if a parameter, buffer or hook is not as it was.
    """
    alone = isinstance(subspace, Subspace | LayeredSubspace)
    several = [subspace] if isinstance(subspace, Subspace | LayeredSubspace) else list(subspace)
    _check(model, several, dose)
    how = {"alone": alone, "dose": dose, "reference": reference, "scope": _scope(model, layers)}
    plain = [one for one in several if isinstance(one, Subspace)]
    layered = [one for one in several if isinstance(one, LayeredSubspace)]
    edits, checked, residue = _layer_by_layer(model, layered, **how) if layered else _everywhere(model, plain, **how)
    receipt = Receipt(f"ablation of {_named(subspace)}", tuple(edits), checked=checked if dose == 1.0 else ())
    with intervention(model, edits, receipt, residue=residue):
        yield receipt


@contextmanager
def add(model: ChatModel, subspace: Subspace, *, dose: float = 1.0) -> Iterator[Receipt]:
    """Adds ``dose`` times the subspace's vector to the residual stream entering its layer, at every position.

    Raises InterventionError for a subspace of rank other than one or without a layer, and on leaving as ``ablate``.
    """
    if subspace.rank != 1 or subspace.layer is None:
        raise InterventionError(f"Addition needs one vector and its layer; got a {subspace!r}.")
    _check(model, [subspace], dose)
    _scope(model, (subspace.layer, subspace.layer))
    site = model.sites.resid_pre[subspace.layer]
    vector = subspace.vectors[0].to(wide(model.dtype)) * dose

    def edit(x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        return (x.to(vector.dtype) + vector.to(x.device)).to(x.dtype)

    receipt = Receipt(f"addition of {_named(subspace)}", (site,), checked=())
    with intervention(model, {site: edit}, receipt):
        yield receipt


@contextmanager
def intervention(
    model: ChatModel, edits: dict[str, Edit], receipt: Receipt, *, residue: Residue | None = None
) -> Iterator[None]:
    """Registers the edits and the readers of a receipt, and verifies on the way out that nothing else changed."""
    before = _state(model)

    def editing(site: str):
        def hook(x: Tensor, hook) -> Tensor:
            receipt.fired(site)
            return edits[site](x)

        return hook

    def reading(site: str):
        def hook(x: Tensor, hook) -> None:
            if residue is not None:
                receipt.checked_at(site, float(residue(site, x)))

        return hook

    hooks = [(site, editing(site)) for site in edits] + [(site, reading(site)) for site in receipt.checked]
    counting = counted(model, began=receipt.forward_began, ended=receipt.forward_ended)
    try:
        with counting, hooked(model, hooks), _no_decoding(model):
            yield
    finally:
        if _state(model) != before:
            raise InterventionError(
                f"{receipt.what}: a parameter, buffer or hook of {model.origin.name} changed inside the block. "
                "Load the model again; edit activations through ablate and add only."
            )
    receipt.verify(tolerance=_tolerance(model))


@contextmanager
def _no_decoding(model: ChatModel) -> Iterator[None]:
    """Makes every decoding method of bridge and inner model raise, unless the model can only speak fiction."""

    def refuse(*_args, **_kwargs):
        raise ContractError(NO_DECODING)

    holders = [] if model.is_organism else [model.bridge, model.bridge.original_model]
    doors = [(holder, name) for holder in holders for name in DECODERS if hasattr(holder, name)]
    before = [holder.__dict__.get(name) for holder, name in doors]
    try:
        for holder, name in doors:
            holder.__dict__[name] = refuse
        yield
    finally:
        with uninterrupted():
            for (holder, name), old in zip(doors, before, strict=True):
                holder.__dict__.pop(name, None) if old is None else holder.__dict__.update({name: old})


def _state(model: ChatModel) -> tuple:
    """Returns what must be equal before and after: identity and version of every tensor, number of hooks per module."""
    core = model.bridge.original_model
    tensors = (*core.named_parameters(), *core.named_buffers())
    versions = tuple((name, id(value), value.data_ptr(), value._version) for name, value in tensors)
    modules = (*core.modules(), *model.bridge.modules())  # the bridge does not count the inner model as its own
    hooks = tuple((len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules)
    return versions, hooks


def _everywhere(
    model: ChatModel,
    subspaces: Sequence[Subspace],
    *,
    alone: bool,
    dose: float,
    reference: Tensor | None,
    scope: tuple[int, int],
) -> Made:
    """One basis at every write of the scope."""
    basis, (first, last) = _stacked(model, [one.basis for one in subspaces], alone=alone), scope
    shift = None if reference is None else reference.to(basis) @ basis
    entering, later = edited_sites(model, first, last, dose=dose)
    edits = {entering: _projection(basis, dose, shift)}
    edits |= dict.fromkeys(later, _projection(basis, dose, None if model.sites.additive else shift))
    checked = (*model.sites.resid_pre[first : last + 1], model.sites.resid_post[last])
    return edits, checked, lambda _, x: held(x, basis, shift)


def _layer_by_layer(
    model: ChatModel,
    subspaces: Sequence[LayeredSubspace],
    *,
    alone: bool,
    dose: float,
    reference: Tensor | None,
    scope: tuple[int, int],
) -> Made:
    """Each layer's own basis where the stream enters it, and at its writes."""
    layers = [layer for layer in subspaces[0].layers if scope[0] <= layer <= scope[1]]
    if reference is not None or not layers or any(one.layers != subspaces[0].layers for one in subspaces):
        raise InterventionError(
            f"The {subspaces[0]!r} is ablated about zero, in a scope that holds one of its layers, and row by row with "
            "others of the same layers only."
        )
    bases = {layer: _stacked(model, [one.at(layer).basis for one in subspaces], alone=alone) for layer in layers}
    sites = {layer: edited_sites(model, layer, layer, dose=dose) for layer in layers}
    checked = {model.sites.resid_pre[layer]: basis for layer, basis in bases.items()}
    checked |= {model.sites.resid_post[layers[-1]]: bases[layers[-1]]}
    return LayerByLayer(bases, sites, dose).edits, tuple(checked), lambda site, x: held(x, checked[site])


def _stacked(model: ChatModel, bases: Sequence[Tensor], *, alone: bool) -> Tensor:
    """Bases ``[candidate, d, k]`` where the model is, or ``[d, k]`` of the only one."""
    stacked = torch.stack(list(bases)).to(wide(model.dtype)).to(model.device)
    return stacked[0] if alone else stacked


def _check(model: ChatModel, subspaces: Sequence[Ablatable], dose: float) -> None:
    if not subspaces:
        raise InterventionError("Nothing to ablate: the sequence of subspaces is empty.")
    if not math.isfinite(dose):
        raise InterventionError(f"A dose of {dose} is not a finite number.")
    if len({(type(one), one.rank) for one in subspaces}) > 1:
        raise InterventionError(
            "Subspaces ablated row by row must be of one rank and kind. Ablate each rank in its own block."
        )
    width = subspaces[0].vectors.shape[-1]
    if any(one.vectors.shape[-1] != model.d_model for one in subspaces):
        raise InterventionError(
            f"The {subspaces[0]!r} has width {width}; {model.origin.name} has {model.d_model}. Locate on this model."
        )


def _projection(basis: Tensor, dose: float, shift: Tensor | None) -> Edit:
    def edit(x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        vectors, along = blocks(x, basis), basis.to(x.device)
        part = inside(vectors, along, shift)
        # One direction: an outer product is several times faster than a matrix product with one column.
        kept = (
            torch.addcmul(vectors, part, along.mT, value=-dose)
            if along.shape[-1] == 1
            else vectors - dose * (part @ along.mT)
        )
        return kept.reshape(x.shape).to(x.dtype)

    return edit


def _scope(model: ChatModel, layers: tuple[int, int] | None) -> tuple[int, int]:
    first, last = layers or (0, model.n_layers - 1)
    if not 0 <= first <= last < model.n_layers:
        raise InterventionError(
            f"Scope {first}–{last} is outside the layers of {model.origin.name}, 0–{model.n_layers - 1}."
        )
    return first, last


def _named(subspace: Ablatable | Sequence[Ablatable]) -> str:
    return (
        repr(subspace) if isinstance(subspace, Subspace | LayeredSubspace) else f"{len(subspace)} subspaces row by row"
    )


def _tolerance(model: ChatModel) -> float:
    """Rounding of a sum of 2L + 1 writes in the model's dtype, with a factor of 16 to spare."""
    return 16 * torch.finfo(model.dtype).eps * (2 * model.n_layers + 1) ** 0.5
