"""Prompts of different lengths through a model: length buckets, left padding, smaller batches when memory ends."""

from __future__ import annotations

import gc
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusalscope.errors import MeasurementError, ModelError
from refusalscope.model.chat import ChatModel
from refusalscope.progress import bar
from refusalscope.reprs import Shown

OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "can't allocate memory", "not enough memory")


class SmallerBatchWarning(UserWarning):
    """Memory ended and the batch was halved. The values are right; their last bits are those of the smaller size."""


@dataclass(frozen=True, repr=False)
class Batch(Shown):
    """Rows of similar length, padded on the left.

    Attributes:
        mask: one on tokens, zero on padding; or ``[row, 1, pos, seen]``, added to attention scores.
        rows: the index of each row in the caller's list.
        reply_length: how many tokens at the end are the reply's.
        positions: of every token, where the mask does not tell.
    """

    tokens: Int[Tensor, "row pos"]
    mask: Tensor
    rows: Int[Tensor, " row"]
    reply_length: int = 0
    positions: Int[Tensor, "row pos"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def repeated(self, copies: int) -> Batch:
        """Returns the rows several times over, candidate-major: one block of all rows per copy."""
        if copies == 1:
            return self
        several = {name: getattr(self, name) for name in ("tokens", "mask", "rows", "positions")}
        made = {name: torch.cat([value] * copies) for name, value in several.items() if value is not None}
        return replace(self, **made)

    def __repr__(self) -> str:
        return "Batch: rows of token ids, padded on the left"


def batches(
    model: ChatModel, token_lists: Sequence[Sequence[int]], *, batch_size: int | None = None, reply_length: int = 0
) -> Iterator[Batch]:
    """Yields batches of similar length, longest first: memory that does not suffice is then known at once.

    Raises:
        MeasurementError: for an empty row, or one longer than the model's context.
    """
    size = model.batch_size if batch_size is None else batch_size
    order = _longest_first(model, token_lists)
    for start in range(0, len(order), size):
        yield _batch(model, token_lists, order[start : start + size], reply_length=reply_length)


@torch.no_grad()
def forward(model: ChatModel, batch: Batch, *, keep: int = 1) -> Float[Tensor, "row keep vocab"]:
    """Returns the logits at the last ``keep`` positions, in float32 or better, under whatever hooks are registered.

    Logits before those positions are never made where the architecture can leave them out (``logits_to_keep``).
    """
    logits = model.bridge(
        batch.tokens, attention_mask=batch.mask, return_type="logits", **placed(batch), **_frugal(model, keep)
    )
    return at_least_float32(logits[:, -keep:])


@torch.no_grad()
def run_cached(
    model: ChatModel, batch: Batch, cache: Any, *, keep: int = 1
) -> tuple[Float[Tensor, "row keep vocab"], Any]:
    """Returns the same behind a key-value cache, and the cache with these tokens in it.

    None is an empty cache. A cache is changed by the forward that extends it. The mask spans the cache and the batch.
    """
    how = {**_frugal(model, keep), "use_cache": True}
    logits, longer = model.bridge(
        batch.tokens,
        attention_mask=batch.mask,
        return_type="logits_and_cache",
        past_key_values=cache,
        **placed(batch),
        **how,
    )
    return at_least_float32(logits[:, -keep:]), longer


def placed(batch: Batch) -> dict[str, Tensor]:
    """Returns a batch's positions as the model takes them; nothing where the mask tells them."""
    return {} if batch.positions is None else {"position_ids": batch.positions}


def map_rows(
    model: ChatModel,
    token_lists: Sequence[Sequence[int]],
    function: Callable[[Batch], Tensor],
    *,
    batch_size: int | None = None,
    reply_length: int = 0,
    progress: str = "prompts",
) -> Tensor:
    """Returns ``function``'s value for every row, in the caller's order.

    When memory ends, the batch size is halved for the rows not yet done, with one warning.

    Args:
        model: the model the rows are meant for.
        token_lists: one list of token ids per row.
        function: from a batch to one value, or one tensor, per row of it.
        batch_size: rows per batch, the model's own where None.
        reply_length: handed to every batch.
        progress: what a bar on stderr calls the work, should it take longer than two seconds.

    Raises:
        ModelError: when not even one row fits.
        MeasurementError: when there are no rows, and as ``batches`` does.
    """
    order = _longest_first(model, token_lists)
    size, start, done, warned = model.batch_size if batch_size is None else batch_size, 0, [], False
    with bar(len(order), progress) as shown:
        while start < len(order):
            rows = _together(model, token_lists, order[start : start + size])
            values = _tried(function, _batch(model, token_lists, rows, reply_length=reply_length))
            if values is None:
                size, warned = _halved(model, len(rows), warned=warned), True
                continue
            done.append(values)
            start += len(rows)
            shown.update(len(rows))
    return torch.cat(done)[torch.argsort(torch.tensor(order)).to(done[0].device)]


def _longest_first(model: ChatModel, token_lists: Sequence[Sequence[int]]) -> list[int]:
    lengths = [len(tokens) for tokens in token_lists]
    if not lengths or min(lengths) == 0:
        raise MeasurementError(
            f"{model.origin.name}: asked to run {'an empty row' if lengths else 'no rows'} of tokens."
        )
    if max(lengths) > model.bridge.cfg.n_ctx:
        longest, limit = max(lengths), model.bridge.cfg.n_ctx
        raise MeasurementError(f"{model.origin.name}: a row has {longest} tokens and the context {limit}. Shorten it.")
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])


def _together(model: ChatModel, token_lists: Sequence[Sequence[int]], rows: Sequence[int]) -> Sequence[int]:
    """Returns the first of some rows that may be padded to one length.

    In float64 only rows of equal length: Hugging Face's eager attention masks with the least float64 and takes the
    softmax in float32, where that is minus infinity, so that padding is NaN and spreads.
    """
    if model.dtype != torch.float64:
        return rows
    return [row for row in rows if len(token_lists[row]) == len(token_lists[rows[0]])]


def _batch(model: ChatModel, token_lists: Sequence[Sequence[int]], rows: Sequence[int], *, reply_length: int) -> Batch:
    longest, filler = max(len(token_lists[row]) for row in rows), _filler(model)
    tokens = [[filler] * (longest - len(token_lists[row])) + list(token_lists[row]) for row in rows]
    mask = [[0] * (longest - len(token_lists[row])) + [1] * len(token_lists[row]) for row in rows]
    where = model.device
    return Batch(torch.tensor(tokens, device=where), torch.tensor(mask, device=where), torch.tensor(rows), reply_length)


def _filler(model: ChatModel) -> int:
    known = (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id)
    return next((token for token in known if isinstance(token, int)), 0)  # masked, so any token id will do


def _frugal(model: ChatModel, keep: int) -> dict[str, object]:
    accepted = inspect.signature(model.bridge.original_model.forward).parameters
    # The bridge's configuration asks for attention weights and a cache; neither is read here.
    return {
        "use_cache": False,
        "output_attentions": False,
        **({"logits_to_keep": keep} if "logits_to_keep" in accepted else {}),
    }


def at_least_float32(logits: Float[Tensor, "*row vocab"]) -> Float[Tensor, "*row vocab"]:
    """Returns logits in float32, or as they are where they are wider; NaN for a row that overflowed.

    A row with NaN or +inf is no distribution. It is NaN throughout, so that no mean over it comes out as a number.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    overflowed = ~wide.amax(-1, keepdim=True).isfinite()
    return wide.masked_fill(overflowed, float("nan")) if bool(overflowed.any()) else wide


@torch.no_grad()
def _tried(function: Callable[[Batch], Tensor], batch: Batch) -> Tensor | None:
    try:
        values = function(batch)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a plain one
        if not isinstance(error, torch.OutOfMemoryError) and not any(word in str(error) for word in OUT_OF_MEMORY):
            raise
        return None
    if len(values) != len(batch):
        raise MeasurementError(
            f"A function of a batch of {len(batch)} rows returned {len(values)} values; one per row."
        )
    return values


def _halved(model: ChatModel, size: int, *, warned: bool) -> int:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if size == 1:
        raise ModelError(
            f"{model.origin.name}: not even one row fits into memory. Use a larger device or a smaller dtype."
        )
    if not warned:
        warnings.warn(f"{model.origin.name}: out of memory at {size} rows; halving.", SmallerBatchWarning, stacklevel=3)
    return size // 2
