"""Running only the later layers: record what every block was called with, then call the later ones again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import MeasurementError
from refusalscope.model.batching import Batch, at_least_float32, batches, forward
from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import uninterrupted
from refusalscope.model.sites import rounding
from refusalscope.reprs import Shown

TOLERANCE = 1e-5


@dataclass(frozen=True, repr=False)
class Residuals(Shown):
    """The residual stream entering each layer for one batch, and the other arguments its blocks were called with.

    Attributes:
        batch: what was run.
        entering: one tensor per layer; index it by layer.
        calls: per layer, the keyword arguments beside the residual (masks, positions).
        keep: how many positions at the end are read.
    """

    batch: Batch
    entering: tuple[Float[Tensor, "row pos d"], ...]
    calls: tuple[Mapping[str, Any], ...]
    keep: int = 1

    def __getitem__(self, layer: int) -> Float[Tensor, "row pos d"]:
        return self.entering[layer]

    def __len__(self) -> int:
        return len(self.entering)

    def __repr__(self) -> str:
        return "Residuals: the residual stream entering each layer, for one batch"


def recorded(model: ChatModel, batch: Batch, *, keep: int = 1) -> tuple[Float[Tensor, "row *kept vocab"], Residuals]:
    """Returns the logits of a whole forward at its last ``keep`` positions, and what resumes it at any layer.

    Without the axis of positions where one is kept. Holds rows × positions × d numbers for every layer. Hooks
    registered on the model act in this forward.
    """
    entering: list[Tensor] = []
    calls: list[Mapping[str, Any]] = []
    with ExitStack() as stack:
        with uninterrupted():
            for block in model.bridge.blocks:
                handle = block.register_forward_pre_hook(_recorder(entering, calls), with_kwargs=True)
                stack.callback(handle.remove)
        logits = forward(model, batch, keep=keep)
    return logits[:, -1] if keep == 1 else logits, Residuals(batch, tuple(entering), tuple(calls), keep)


@torch.no_grad()
def resume(
    model: ChatModel, record: Residuals, layer: int, residual: Float[Tensor, "repeated pos d"]
) -> Float[Tensor, "repeated *kept vocab"]:
    """Returns the logits at the recorded positions when ``residual`` enters ``layer`` and only later blocks run.

    Costs (L − layer) / L of a forward. Hooks registered on the model act in the blocks that run.

    Args:
        model: one with ``can_resume``.
        record: of the same batch.
        layer: 0 for the whole stack.
        residual: the batch's rows, or c copies of them in the order ``(c row)``, each its own candidate.

    Raises:
        MeasurementError: when the model cannot resume, or the rows are not a multiple of the batch's.
    """
    if not model.can_resume:
        raise MeasurementError(f"{model.origin.name}: its blocks do not resume to the logits. Use whole forwards.")
    return _resumed(model, record, layer, residual)


def resumes(model: ChatModel, token_lists: list[list[int]]) -> bool:
    """Returns whether resuming at layers 0 and L/2, also with two candidates, gives the whole forward's logits.

    Relative tolerance 1e-5 in float32, 8 ε of a narrower dtype: repeated rows may round differently.
    """
    if not (hasattr(model.bridge, "ln_final") and hasattr(model.bridge, "unembed")):
        return False
    (batch,) = batches(model, token_lists, batch_size=len(token_lists))
    logits, record = recorded(model, batch)
    if len(record) != model.n_layers:
        return False
    tolerance = rounding(model.dtype, least=TOLERANCE)
    expected = repeat(logits, "row vocab -> (c row) vocab", c=2)
    for layer in {0, model.n_layers // 2}:
        made = _resumed(model, record, layer, repeat(record[layer], "row pos d -> (c row) pos d", c=2))
        if not bool((made - expected).abs().amax() <= tolerance * expected.abs().amax()):
            return False
    return True


def _resumed(model: ChatModel, record: Residuals, layer: int, residual: Tensor) -> Tensor:
    rows = len(record.batch)
    copies, rest = divmod(len(residual), rows)
    if rest or not copies:
        raise MeasurementError(f"Resuming a batch of {rows} rows with {len(residual)}; give a multiple of {rows}.")
    for block, call in zip(list(model.bridge.blocks)[layer:], record.calls[layer:], strict=True):
        made = block(residual, **{name: _copied(value, rows, copies) for name, value in call.items()})
        residual = made[0] if isinstance(made, tuple) else made
    bridge: Any = model.bridge
    last = at_least_float32(bridge.unembed(bridge.ln_final(residual[:, -record.keep :])))
    return _capped(last[:, -1] if record.keep == 1 else last, bridge.original_model.config.get_text_config())


def _recorder(entering: list[Tensor], calls: list[Mapping[str, Any]]) -> Callable[..., None]:
    def note(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        residual, *others = args if args else (kwargs["hidden_states"],)
        entering.append(residual.detach())
        named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        calls.append({**dict(zip(_positional(block), others, strict=False)), **named})

    return note


def _positional(block: Any) -> list[str]:
    return list(inspect.signature(block.original_component.forward).parameters)[1:]


def _copied(value: Any, rows: int, copies: int) -> Any:
    if isinstance(value, Tensor) and value.ndim and len(value) == rows:
        return repeat(value, "row ... -> (c row) ...", c=copies)
    if isinstance(value, tuple | list):
        return type(value)(_copied(part, rows, copies) for part in value)
    if isinstance(value, Mapping):
        return {name: _copied(part, rows, copies) for name, part in value.items()}
    return value


def _capped(logits: Tensor, config: Any) -> Tensor:
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
