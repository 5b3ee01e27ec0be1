"""Is every residual site read on every forward? What a hook that did not fire has to show is old, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from refusalscope.model.chat import ChatModel
from refusalscope.model.hooking import counted, hooked
from refusalscope.receipt import Receipt


@contextmanager
def watched(model: ChatModel) -> Iterator[Receipt]:
    """Counts the forwards of the block and how often each residual site is read; nothing is changed.

    Raises InterventionError on leaving, naming the first site that was not read on every forward.
    """
    receipt = Receipt("reading the residual stream", model.sites.residual, checked=())

    def counting(site: str):
        def hook(x: Float[Tensor, "row pos d"], hook) -> None:
            receipt.fired(site)

        return hook

    sites = [(site, counting(site)) for site in model.sites.residual]
    with counted(model, began=receipt.forward_began, ended=receipt.forward_ended), hooked(model, sites):
        yield receipt
    receipt.verify(tolerance=0.0)
