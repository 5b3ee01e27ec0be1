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
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import ContractError, InterventionError
from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import hooked
from refusalscope.receipt import Receipt
from refusalscope.subspace import Subspace

Edit = Callable[[Tensor], Tensor]
DECODERS = ("generate", "generate_stream", "hf_generate", "diffusion_generate", "generate_batch")
NO_DECODING = (
    "An intervened model is never decoded (RESPONSIBLE_USE.md, C3): leave the intervention first, or score logits."
)


@contextmanager
def ablate(
    model: ChatModel,
    subspace: Subspace | Sequence[Subspace],
    *,
    dose: float = 1.0,
    reference: Float[Tensor, " d"] | None = None,
    layers: tuple[int, int] | None = None,
) -> Iterator[Receipt]:
    """Ablates a subspace while the block runs; yields a receipt of what fired where.

    Args:
        model: whose forwards are edited.
        subspace: what to ablate. A sequence ablates a different one in each block of rows, candidate-major: the batch
            must then hold the same prompts once per subspace (``copies`` of the metrics does that).
        dose: λ; 0 changes nothing bit for bit, 1 removes the subspace.
        reference: c, a vector ``[d]`` such as the harmless mean at the located cell (affine ablation, Marshall et al.
            2024); None means zero.
        layers: first and last layer of the scope, inclusive; None means all.

    Raises:
        InterventionError: on leaving, if a hook did not fire on every forward, if the residual stream still held the
            subspace at dose 1, or if a parameter, buffer or hook is not as it was.
    """
    basis, first, last = _basis(model, subspace, dose), *_scope(model, layers)
    shift = None if reference is None else reference.to(basis) @ basis
    entering, later = _edited_sites(model, first, last, dose=dose)
    edits = {entering: _projection(basis, dose, shift)}
    edits |= dict.fromkeys(later, _projection(basis, dose, None if model.sites.additive else shift))
    checked = (*model.sites.resid_pre[first : last + 1], model.sites.resid_post[last]) if dose == 1.0 else ()
    receipt = Receipt(f"ablation of {_named(subspace)}", tuple(edits), checked=checked)
    with intervention(model, edits, receipt, residue=lambda x: _held(x, basis, shift)):
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
    vector = subspace.vectors[0].to(_wide(model.dtype)) * dose

    def edit(x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        return (x.to(vector.dtype) + vector.to(x.device)).to(x.dtype)

    receipt = Receipt(f"addition of {_named(subspace)}", (site,), checked=())
    with intervention(model, {site: edit}, receipt):
        yield receipt


@contextmanager
def intervention(
    model: ChatModel, edits: dict[str, Edit], receipt: Receipt, *, residue: Edit | None = None
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
                receipt.checked_at(site, float(residue(x)))

        return hook

    hooks = [(site, editing(site)) for site in edits] + [(site, reading(site)) for site in receipt.checked]
    core = model.bridge.original_model
    began = core.register_forward_pre_hook(lambda *_: receipt.forward_began())
    ended = core.register_forward_hook(lambda *_: receipt.forward_ended())
    try:
        with hooked(model, hooks), _no_decoding(model):
            yield
    finally:
        began.remove()
        ended.remove()
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
    for holder, name in doors:
        holder.__dict__[name] = refuse
    try:
        yield
    finally:
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


def _basis(model: ChatModel, subspace: Subspace | Sequence[Subspace], dose: float) -> Tensor:
    several = [subspace] if isinstance(subspace, Subspace) else list(subspace)
    _check(model, several, dose)
    stacked = torch.stack([one.basis for one in several]).to(_wide(model.dtype)).to(model.device)
    return stacked[0] if isinstance(subspace, Subspace) else stacked


def _check(model: ChatModel, subspaces: Sequence[Subspace], dose: float) -> None:
    if not subspaces:
        raise InterventionError("Nothing to ablate: the sequence of subspaces is empty.")
    if not math.isfinite(dose):
        raise InterventionError(f"A dose of {dose} is not a finite number.")
    if len({one.rank for one in subspaces}) > 1:
        raise InterventionError("Subspaces ablated row by row must be of one rank. Ablate each rank in its own block.")
    width = subspaces[0].vectors.shape[1]
    if any(one.vectors.shape[1] != model.d_model for one in subspaces):
        raise InterventionError(
            f"The {subspaces[0]!r} has width {width}; {model.origin.name} has {model.d_model}. Locate on this model."
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 where the model is: a projection in a narrower type would round what it leaves alone."""
    return torch.promote_types(dtype, torch.float32)


def _projection(basis: Tensor, dose: float, shift: Tensor | None) -> Edit:
    def edit(x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        wide, along = _blocks(x, basis), basis.to(x.device)
        inside = _inside(wide, along, shift)
        # One direction: an outer product is several times faster than a matrix product with one column.
        kept = (
            torch.addcmul(wide, inside, along.mT, value=-dose)
            if along.shape[-1] == 1
            else wide - dose * (inside @ along.mT)
        )
        return kept.reshape(x.shape).to(x.dtype)

    return edit


def _held(x: Float[Tensor, "row pos d"], basis: Tensor, shift: Tensor | None) -> Tensor:
    """Returns the largest |Uᵀ(h − c)| relative to the largest norm of h."""
    wide = _blocks(x, basis)
    inside = _inside(wide, basis.to(x.device), shift)
    return inside.abs().amax() / torch.linalg.vector_norm(wide, dim=-1).amax().clamp(min=1e-30)


def _blocks(x: Float[Tensor, "row pos d"], basis: Tensor) -> Float[Tensor, "*candidate vector d"]:
    """Returns all vectors of a batch in the basis' precision, in one block per candidate where there are several."""
    if basis.ndim == 2:
        return x.to(basis.dtype).flatten(0, 1)
    if len(x) % len(basis):
        raise InterventionError(f"A batch of {len(x)} rows cannot hold {len(basis)} equal blocks, one per subspace.")
    return rearrange(x.to(basis.dtype), "(c r) p d -> c (r p) d", c=len(basis))


def _inside(vectors: Tensor, basis: Tensor, shift: Tensor | None) -> Float[Tensor, "*candidate vector k"]:
    """Returns Uᵀ(h − c) of every vector, for each candidate's own U."""
    inside = (vectors * basis.mT).sum(-1, keepdim=True) if basis.shape[-1] == 1 else vectors @ basis
    return inside if shift is None else inside - rearrange(shift, "... k -> ... 1 k").to(vectors.device)


def _scope(model: ChatModel, layers: tuple[int, int] | None) -> tuple[int, int]:
    first, last = layers or (0, model.n_layers - 1)
    if not 0 <= first <= last < model.n_layers:
        raise InterventionError(
            f"Scope {first}–{last} is outside the layers of {model.origin.name}, 0–{model.n_layers - 1}."
        )
    return first, last


def _edited_sites(model: ChatModel, first: int, last: int, *, dose: float) -> tuple[str, list[str]]:
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


def _named(subspace: Subspace | Sequence[Subspace]) -> str:
    return repr(subspace) if isinstance(subspace, Subspace) else f"{len(subspace)} subspaces row by row"


def _tolerance(model: ChatModel) -> float:
    """Rounding of a sum of 2L + 1 writes in the model's dtype, with a factor of 16 to spare."""
    return 16 * torch.finfo(model.dtype).eps * (2 * model.n_layers + 1) ** 0.5
