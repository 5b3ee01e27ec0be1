"""Thoughts before the answer: switched off, or given as an empty block, so that the answer's first token is next."""

from __future__ import annotations

from typing import Literal

Thinking = Literal["off", "closed", "absent"]
SWITCHES = ("enable_thinking", "thinking")
TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
EMPTY = "\n\n"  # what models trained with a switch write between the tags when they do not think
# The harmony format: thoughts go into the analysis channel, the answer into the final one.
CHANNEL, TURN = "<|channel|>", "<|start|>assistant"
ANSWER_CHANNEL = f"{CHANNEL}analysis<|message|><|end|>{TURN}{CHANNEL}final<|message|>"


def closing(source: str, tail: str, *, switched: bool) -> str:
    """Returns what to write behind a rendered request so that an empty thought stands closed before the answer.

    Empty where nothing is missing: the template has closed the thought, or the model does not think.

    Args:
        source: the Jinja template.
        tail: what the template wrote behind the request.
        switched: whether a switch of the template has turned thinking off. Where there is none, a template that cuts
            thoughts out of earlier answers belongs to a model that opens its thoughts itself.
    """
    if CHANNEL in source and tail.endswith(TURN):
        return ANSWER_CHANNEL
    for opening, end in TAGS:
        _, opened, thought = tail.rpartition(opening)
        if opened and end not in thought:
            return f"{EMPTY.removeprefix(thought) if not thought.strip() else EMPTY}{end}{EMPTY}"
        if end in source and end not in tail and not switched:
            return f"{opening}{EMPTY}{end}{EMPTY}"
    return ""
