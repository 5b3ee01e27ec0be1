"""Hooks that are gone when the block ends, whatever ends it, and leave everybody else's hooks alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from refusalscope.model.chat import ChatModel

Hook = Callable[..., object]


@contextmanager
def hooked(model: ChatModel, hooks: Mapping[str, Hook] | Sequence[tuple[str, Hook]]) -> Iterator[None]:
    """Registers forward hooks ``fn(tensor, hook)`` at named sites while the block runs, in the order given.

    A hook that changes anything returns a new tensor. Nested blocks compose: each removes its own hooks only, which
    ``bridge.hooks`` does not promise.
    """
    pairs = list(hooks.items()) if isinstance(hooks, Mapping) else list(hooks)
    added = []
    try:
        for site, hook in pairs:
            point = model.bridge.hook_dict[site]
            added.append((point, point.add_hook(hook)))
        yield
    finally:
        for point, handle in reversed(added):
            handle.hook.remove()
            point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]
