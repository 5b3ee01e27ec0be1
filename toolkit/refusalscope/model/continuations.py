"""What follows a prompt and every beginning of a reply, read in one forward of a tree.

All beginnings are packed behind their prompt; an attention mask lets each see the prompt and its own path only, and its
positions count from the prompt's end. So a prompt is run once, however many beginnings there are. What all prompts
begin with (a system message) is run once per call and reused as a key-value cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from refusalscope.model.batching import Batch, batches, forward, map_rows, run_cached
from refusalscope.model.chat import ChatModel
from refusalscope.model.sites import rounding
from refusalscope.reprs import Shown

TOLERANCE = 1e-4
WORTH_SHARING = 8  # tokens that all prompts begin with; running fewer of them apart saves less than it costs
PROBE_SHARED, PROBE_PATHS = 3, ((0, 1), (0, 2), (3,))
Tokens = Sequence[int]


@dataclass(frozen=True, repr=False)
class Tree(Shown):
    """Beginnings of a reply, merged where they are alike; node 0 is the end of the prompt.

    Attributes:
        paths: the tokens from the prompt's end to every node, parents first; the first is empty.
    """

    paths: tuple[tuple[int, ...], ...] = ((),)

    @classmethod
    def before(cls, openings: Iterable[Tokens]) -> Tree:
        """Returns the nodes whose next token decides between openings: all their beginnings, themselves left out."""
        made = {tuple(opening[:length]) for opening in openings for length in range(len(opening))}
        return cls(tuple(sorted(made | {()}, key=lambda path: (len(path), path))))

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def node(self) -> dict[tuple[int, ...], int]:
        """The number of the node that a path ends in."""
        return {path: number for number, path in enumerate(self.paths)}

    @property
    def tokens(self) -> tuple[int, ...]:
        """The last token of every node but the first."""
        return tuple(path[-1] for path in self.paths[1:])

    @property
    def depths(self) -> tuple[int, ...]:
        """How many reply tokens every node but the first stands behind."""
        return tuple(len(path) for path in self.paths[1:])

    @cached_property
    def sees(self) -> Bool[Tensor, "node other"]:
        """Which nodes each node attends to: its own path; the first node is left out."""
        pairs = [[path[: len(other)] == other for other in self.paths[1:]] for path in self.paths[1:]]
        return torch.tensor(pairs, dtype=torch.bool).reshape(len(self) - 1, len(self) - 1)

    def __repr__(self) -> str:
        return "Tree: beginnings of a reply, merged where they are alike"


@dataclass(frozen=True, repr=False)
class Beginning(Shown):
    """What all rows begin with, as the keys and values that it left: one row per ablated subspace."""

    length: int = 0
    cache: Any = field(default=None)

    def __repr__(self) -> str:
        return "Beginning: what all prompts start with, as a key-value cache"


def read_continuations(
    model: ChatModel,
    token_lists: Sequence[Tokens],
    tree: Tree,
    score: Callable[[Float[Tensor, "row node vocab"], Tensor], Tensor],
    *,
    copies: int = 1,
    progress: str = "prompts",
) -> Tensor:
    """Returns ``score(logits [row, node, vocab], rows)`` of every prompt, in order; ``[copies, prompt]`` for several.

    Where neither a tree nor a shared beginning is to be run, this is the plain forward, bit for bit. Where the
    architecture cannot be packed (``ChatModel.can_pack``) every beginning is run behind its own copy of the prompt.
    """
    packs = packable(model, token_lists, tree)
    start = _beginning(model, token_lists, copies) if packs else Beginning()
    own = [list(tokens[start.length :]) for tokens in token_lists]
    run = _packed if packs and (len(tree) > 1 or start.length) else _one_by_one

    def scored(batch: Batch) -> Tensor:
        logits, rows = run(model, batch, tree, start, copies), batch.rows.repeat(copies)
        return rearrange(score(logits, rows.to(logits.device)), "(c r) ... -> r c ...", c=copies)

    size = max(1, model.batch_size // copies)
    values = map_rows(model, own, scored, batch_size=size, progress=progress).cpu()
    return values[:, 0] if copies == 1 else values.transpose(0, 1)


def packed(model: ChatModel, batch: Batch, tree: Tree, *, shared: int = 0) -> Batch:
    """Returns a batch with the tree behind every row, its own attention mask and positions.

    ``shared`` counts tokens in front that are not in the batch, because a cache holds their keys and values.
    """
    rows, width = batch.tokens.shape
    nodes, where = len(tree) - 1, batch.tokens.device
    length = batch.mask.sum(1)
    tokens = torch.cat([batch.tokens, torch.tensor(tree.tokens, dtype=torch.long, device=where).expand(rows, -1)], 1)
    inside = (batch.mask.cumsum(1) - 1).clamp(min=0)
    behind = length[:, None] + torch.tensor(tree.depths, dtype=torch.long, device=where) - 1
    real = batch.mask.bool()
    causal = torch.ones(width, width, dtype=torch.bool, device=where).tril()
    allowed = torch.zeros(rows, width + nodes, shared + width + nodes, dtype=torch.bool, device=where)
    allowed[:, :, :shared] = True
    allowed[:, :width, shared : shared + width] = causal & real[:, None] & real[:, :, None]
    allowed[:, width:, shared : shared + width] = real[:, None]
    allowed[:, width:, shared + width :] = tree.sees.to(where)
    allowed.diagonal(shared, 1, 2).fill_(True)  # padding sees itself: a row of nothing but masks would be NaN
    mask = torch.zeros(allowed.shape, dtype=model.dtype, device=where).masked_fill(
        ~allowed, torch.finfo(model.dtype).min
    )
    return replace(batch, tokens=tokens, mask=mask[:, None], positions=shared + torch.cat([inside, behind], 1))


def packs(model: ChatModel, token_lists: Sequence[Tokens]) -> bool:
    """Returns whether packed beginnings behind a shared start give the logits of plain forwards.

    Relative tolerance 1e-4 in float32, 8 ε of a narrower dtype. Tried on rows of different lengths.
    """
    vocabulary = int(model.bridge.cfg.d_vocab)
    tree = Tree.before([(*(token % vocabulary for token in path), 0) for path in PROBE_PATHS])
    first = list(token_lists[0][:PROBE_SHARED])
    rows = [first + list(tokens) for tokens in token_lists]
    tolerance = rounding(model.dtype, least=TOLERANCE)
    try:
        start = _started(model, first, 1)
        (own,) = batches(model, [row[len(first) :] for row in rows], batch_size=len(rows))
        made = _packed(model, own, tree, start, 1)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False  # an architecture without such masks or caches; the plain path serves it
    (whole,) = batches(model, rows, batch_size=len(rows))  # in the same order: all are longer by as much
    expected = _one_by_one(model, whole, tree, Beginning(), 1)
    return bool((made - expected).abs().amax() <= tolerance * expected.abs().amax())


def packable(model: ChatModel, token_lists: Sequence[Tokens], tree: Tree) -> bool:
    """Returns whether a tree can be read in one forward with these prompts: by architecture, and within its window."""
    return model.can_pack and _fits(model, token_lists, tree)


def _fits(model: ChatModel, token_lists: Sequence[Tokens], tree: Tree) -> bool:
    """Whether every token is within reach of the last one: a packed mask knows nothing of a sliding window."""
    original: Any = model.bridge.original_model
    config = original.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    longest = max(map(len, token_lists), default=0) + max(tree.depths, default=0)
    return not isinstance(window, int) or longest <= window


def _beginning(model: ChatModel, token_lists: Sequence[Tokens], copies: int) -> Beginning:
    """Runs what all rows begin with, once per copy, where that is worth it."""
    if len(token_lists) < 2 or not (shared := _common(token_lists)) or len(shared) < WORTH_SHARING:
        return Beginning()
    return _started(model, shared, copies)


def _started(model: ChatModel, shared: Tokens, copies: int) -> Beginning:
    tokens = torch.tensor([list(shared)] * copies, device=model.device)
    _, cache = run_cached(model, Batch(tokens, torch.ones_like(tokens), torch.arange(copies)), None)
    return Beginning(len(shared), cache)


def _common(token_lists: Sequence[Tokens]) -> list[int]:
    """The tokens that all rows begin with, so that each keeps at least one of its own."""
    rows = [list(tokens) for tokens in token_lists]
    low, high = min(rows), max(rows)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return list(low[: min(length, min(map(len, token_lists)) - 1)])


def _packed(
    model: ChatModel, batch: Batch, tree: Tree, start: Beginning, copies: int
) -> Float[Tensor, "row node vocab"]:
    several = packed(model, batch, tree, shared=start.length).repeated(copies)
    if not start.length:
        return forward(model, several, keep=len(tree))
    cache = copy.deepcopy(start.cache)  # a forward extends it
    cache.batch_repeat_interleave(len(batch))
    return run_cached(model, several, cache, keep=len(tree))[0]


def _one_by_one(
    model: ChatModel, batch: Batch, tree: Tree, start: Beginning, copies: int
) -> Float[Tensor, "row node vocab"]:
    """Every node behind its own copy of the prompt."""
    made, several = [], batch.repeated(copies)
    for path in tree.paths:
        reply = repeat(torch.tensor(path, dtype=torch.long, device=several.tokens.device), "p -> r p", r=len(several))
        longer = replace(
            several,
            tokens=torch.cat([several.tokens, reply], 1),
            mask=torch.cat([several.mask, torch.ones_like(reply)], 1),
        )
        made.append(forward(model, longer if path else several)[:, -1])
    return torch.stack(made, dim=1)
