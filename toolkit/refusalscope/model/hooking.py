"""Hooks that are gone when the block ends, whatever ends it, and leave everybody else's hooks alone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

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
        with uninterrupted():
            for site, hook in pairs:
                point = model.bridge.hook_dict[site]
                added.append((point, point.add_hook(hook)))
        yield
    finally:
        with uninterrupted():
            for point, handle in reversed(added):
                handle.hook.remove()
                point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]


@contextmanager
def counted(model: ChatModel, *, began: Callable[[], None], ended: Callable[[], None]) -> Iterator[None]:
    """Calls ``began`` before every forward of the whole model while the block runs, and ``ended`` after it."""
    core, handles = model.bridge.original_model, []
    try:
        with uninterrupted():
            handles.append(core.register_forward_pre_hook(lambda *_: began()))
            handles.append(core.register_forward_hook(lambda *_: ended()))
        yield
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back until the block ends: one that falls between registering a hook and noting it would leave it.

    For blocks of milliseconds. Only the main thread is ever interrupted; in any other this does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(*held[0])
