"""The model's own replies, greedy, without any intervention: read in memory to find how it refuses, and never kept.

An intervened model is not decoded (C3): a model with a hook registered is refused here, unless it speaks only fiction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from refusalscope.errors import ContractError
from refusalscope.lexicon import refusal_phrase, refusal_span
from refusalscope.model.batching import Batch, map_rows, run_cached
from refusalscope.model.chat import ChatModel
from refusalscope.organisms.language import language
from refusalscope.prompts import Prompts

SHORT, WHOLE = 24, 64  # reply tokens that show an opening, and that show whether a reply declines
UNSPACED = "\u3040-\u30ff\u3400-\u9fff"  # kana and Chinese characters: no space shows where a word ends
SENTENCES = re.compile(r".*[.!?\u3002\uff01\uff1f\n]", re.DOTALL)
HALF_A_WORD, ANY_WORD = re.compile(rf"(?:[^\W{UNSPACED}]|['\u2019])+\Z|[{UNSPACED}]\Z"), "xq"
REFUSED = (
    "Replies are read of a model as it is: leave the intervention, or remove the hooks of your own, and ask again "
    "(RESPONSIBLE_USE.md, C3)."
)


def greedy_replies(
    model: ChatModel,
    prompts: Prompts,
    *,
    longest: int = SHORT,
    until: Callable[[str], object] | None = None,
    progress: str = "replies",
) -> list[tuple[int, ...]]:
    """Returns the token ids of the model's own reply to every prompt, greedy, its end token included.

    In memory only. Costs a prompt-forward per prompt and one token at a time after it.

    Args:
        longest: tokens of a reply at the most.
        until: from a reply's text so far to whether enough of it was read.

    Raises ContractError for a model with a hook registered, unless it is an organism.
    """
    if not model.is_organism and any(point.fwd_hooks for point in model.bridge.hook_dict.values()):
        raise ContractError(f"{model.origin.name} has hooks registered. {REFUSED}")
    ends = torch.tensor(sorted(_ends(model)), device=model.device)

    def decode(batch: Batch) -> Tensor:
        rows, said = torch.arange(len(batch)), torch.full((len(batch), longest), -1)
        logits, cache = run_cached(model, batch, None)
        mask = batch.mask
        for step in range(longest):
            chosen = logits[:, -1].argmax(-1)
            said[rows, step] = chosen.cpu()
            over = torch.isin(chosen, ends).cpu() | _enough(model, said[rows, : step + 1], until)
            if bool(over.all()) or step == longest - 1:
                break
            kept = (~over).nonzero().flatten()
            if len(kept) < len(rows):
                cache.batch_select_indices(kept.to(model.device))
            rows, chosen = rows[kept], chosen[kept.to(chosen.device)]
            mask = torch.cat([mask[kept.to(mask.device)], torch.ones_like(mask[: len(kept), :1])], dim=1)
            logits, cache = run_cached(model, Batch(chosen[:, None], mask, rows), cache)
        return said

    found = map_rows(model, model.encode(prompts.texts), decode, progress=progress).tolist()
    return [tuple(token for token in row if token >= 0) for row in found]


def refusal_marks(model: ChatModel, prompts: Prompts, replies: Sequence[Sequence[int]]) -> list[str | None]:
    """Returns, per reply, what it declines with; None where it does not decline.

    A shipped phrase of ``data/openings`` for a chat model; for an organism the refusal of its language that it holds.
    """
    texts = reply_texts(model, replies)
    if not model.is_organism:
        return [refusal_phrase(text) for text in whole_or_going_on(model, replies)]
    questions = [language().parse(text) for text in prompts.texts]
    known = [() if one is None else (one.refusal, one.varied_refusal) for one in questions]
    return [next((one for one in some if one in text), None) for some, text in zip(known, texts, strict=True)]


def has_declined(text: str) -> bool:
    """Returns whether a reply that is not over declines in a sentence that is: "I can't" may become "I can't wait"."""
    over = SENTENCES.match(text)
    return over is not None and over.group().count('"') % 2 == 0 and refusal_span(over.group()) is not None


def whole_or_going_on(model: ChatModel, replies: Sequence[Sequence[int]]) -> list[str]:
    """Returns replies as text; those that do not end with an end token as ones that go on."""
    ends, texts = _ends(model), reply_texts(model, replies)
    over = [bool(reply) and reply[-1] in ends for reply in replies]
    return [text if whole else _going_on(text) for text, whole in zip(texts, over, strict=True)]


def reply_texts(model: ChatModel, replies: Sequence[Sequence[int]]) -> list[str]:
    """Returns replies as text, special tokens left out."""
    if model.is_organism:
        end = _ends(model)
        return [
            " ".join(model.tokenizer.convert_ids_to_tokens([token for token in reply if token not in end]))
            for reply in replies
        ]
    return [str(model.tokenizer.decode(list(reply), skip_special_tokens=True)) for reply in replies]


def _going_on(text: str) -> str:
    """What was read of a reply, its last word left out, for it may be half of one, and a word of no meaning behind."""
    return HALF_A_WORD.sub("", text) + ANY_WORD


def _enough(model: ChatModel, said: Tensor, until: Callable[[str], object] | None) -> Tensor:
    if until is None:
        return torch.zeros(len(said), dtype=torch.bool)
    return torch.tensor([bool(until(text)) for text in reply_texts(model, said.tolist())])


def _ends(model: ChatModel) -> set[int]:
    """Every token that ends a reply, by the model's own settings and its tokenizer's."""
    core = model.bridge.original_model
    given = [getattr(getattr(core, name, None), "eos_token_id", None) for name in ("generation_config", "config")]
    several: list[Any] = [
        one if isinstance(one, list | tuple) else [one] for one in (*given, model.tokenizer.eos_token_id)
    ]
    return {int(token) for some in several for token in some if token is not None}
