"""Where the residual stream is written and read: hook names, checked on the model itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusalscope.errors import ModelError
from refusalscope.reprs import Shown

TOLERANCE = 1e-4


@dataclass(frozen=True, repr=False)
class Sites(Shown):
    """Canonical hook names. The residual entering layer 0 is the first write: it is behind any scaling of embeddings.

    Attributes:
        resid_pre, resid_post: the residual entering and leaving each layer.
        resid_mid: what the MLP's branch reads. Where it is the norm's input, a hook there changes the branch and not
            the stream. Empty for parallel blocks.
        attn_out, mlp_out: what each layer adds, behind any post-norm. Empty when a layer has no such site.
        additive: whether the writes are all there is: they sum to the residual, and with all of them zero so is it.
    """

    resid_pre: tuple[str, ...]
    resid_mid: tuple[str, ...]
    resid_post: tuple[str, ...]
    attn_out: tuple[str, ...]
    mlp_out: tuple[str, ...]
    additive: bool

    @property
    def embed(self) -> str:
        """The first write."""
        return self.resid_pre[0]

    @property
    def writes(self) -> tuple[str, ...]:
        """The 2L+1 writes: embedding, then attention and MLP of each layer."""
        layers = zip(self.attn_out, self.mlp_out, strict=True)
        return (self.embed, *(name for layer in layers for name in layer))

    @property
    def residual(self) -> tuple[str, ...]:
        """The residual entering layers 0..L-1, and the last one."""
        return (*self.resid_pre, self.resid_post[-1])

    @property
    def everywhere(self) -> tuple[str, ...]:
        """Where a projection reaches the whole stream: the writes where these are additive, else up to 3L residuals.

        In the second case a site is projected again by the next one: exact at dose 1 only.
        """
        if self.additive:
            return self.writes
        columns = [column for column in (self.resid_pre, self.resid_mid, self.resid_post) if column]
        return tuple(name for layer in zip(*columns, strict=True) for name in layer)

    def __repr__(self) -> str:
        return f"Sites: writes {'sum' if self.additive else 'do not sum'} to the residual stream"


def find_sites(bridge: TransformerBridge, tokens: Int[Tensor, "row pos"], *, name: str) -> Sites:
    """Returns the sites of a model after a forward that reads them all and one that zeroes every write.

    Args:
        bridge: the model.
        tokens: a few arbitrary token ids to run, all attended.
        name: what to call the model in an error.

    Raises:
        ModelError: when a residual site is missing, or does not fire exactly once in a forward.
    """
    pre, mid, post, attn, mlp = (
        _names(bridge, kind) for kind in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    )
    if not pre or not post:
        raise ModelError(
            f"{name}: has no hook at the residual stream of every layer, so nothing can be measured in it."
        )
    if not attn or not mlp:
        attn = mlp = ()
    sites = Sites(pre, mid, post, attn, mlp, additive=False)
    read = _read(bridge, tokens, {*pre, *mid, *post, *attn, *mlp}, name=name)
    tolerance = rounding(bridge.cfg.dtype, least=TOLERANCE)
    additive = bool(attn) and _sums(sites, read, tolerance=tolerance) and _vanishes(bridge, tokens, sites)
    return Sites(pre, mid, post, attn, mlp, additive=additive)


def rounding(dtype: torch.dtype, *, least: float) -> float:
    """Returns the relative difference rounding alone may make: ``least``, or 8 ε of a dtype narrower than float32."""
    return max(least, 8 * torch.finfo(dtype).eps) if dtype.itemsize < 4 else least


def _names(bridge: TransformerBridge, kind: str) -> tuple[str, ...]:
    points = [bridge.hook_dict.get(f"blocks.{layer}.hook_{kind}") for layer in range(bridge.cfg.n_layers)]
    names = [None if point is None else point.name for point in points]
    return tuple(found) if len(found := [name for name in names if name]) == len(names) else ()


@torch.no_grad()
def _read(bridge: TransformerBridge, tokens: Tensor, names: Iterable[str], *, name: str) -> dict[str, Tensor]:
    fired: Counter[str] = Counter()
    read: dict[str, Tensor] = {}
    wanted = sorted(names)

    def note(value: Tensor, hook) -> Tensor:
        fired[hook.name] += 1
        read[hook.name] = value.detach().double().cpu()
        return value

    with bridge.hooks(fwd_hooks=[(site, note) for site in wanted]):
        bridge(tokens, attention_mask=torch.ones_like(tokens), return_type=None, use_cache=False)
    for site in wanted:
        if fired[site] != 1:
            raise ModelError(f"{name}: the hook {site} fired {fired[site]} times in one forward; expected once.")
    return read


def _sums(sites: Sites, read: dict[str, Tensor], *, tolerance: float) -> bool:
    layers = zip(sites.resid_pre, sites.attn_out, sites.mlp_out, sites.resid_post, strict=True)
    between = zip(sites.resid_post[:-1], sites.resid_pre[1:], strict=True)
    pairs = [(read[pre] + read[attn] + read[mlp], read[post]) for pre, attn, mlp, post in layers]
    pairs += [(read[left], read[entered]) for left, entered in between]
    pairs += [(torch.stack([read[write] for write in sites.writes]).sum(0), read[sites.resid_post[-1]])]
    return all(_distance(made, expected) <= tolerance for made, expected in pairs)


def _distance(made: Float[Tensor, "row pos d"], expected: Float[Tensor, "row pos d"]) -> float:
    return float(torch.linalg.vector_norm(made - expected) / torch.linalg.vector_norm(expected))


@torch.no_grad()
def _vanishes(bridge: TransformerBridge, tokens: Tensor, sites: Sites) -> bool:
    last: list[Tensor] = []

    def zero(value: Tensor, hook) -> Tensor:
        return torch.zeros_like(value)

    def note(value: Tensor, hook) -> Tensor:
        last.append(value.detach())
        return value

    hooks = [*((site, zero) for site in sites.writes), (sites.resid_post[-1], note)]
    with bridge.hooks(fwd_hooks=hooks):
        bridge(tokens, attention_mask=torch.ones_like(tokens), return_type=None, use_cache=False)
    return not bool(last[0].any())
