"""The chat model: a bridge with hooks, its tokenizer, where it came from, and how it is spoken to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from refusalscope.model.sites import Sites
from refusalscope.model.template import Template, rendered_texts, tokenized
from refusalscope.organisms.tokens import speaks_only_the_language
from refusalscope.reprs import Shown, facts


@dataclass(frozen=True, repr=False)
class Origin(Shown):
    """Which model this is, in a form that goes into results: names and digests, never a path.

    Attributes:
        name: the directory's or the GGUF file's own name, the Hub id, or the name of a model in memory.
        commit: the Hub commit the files come from, None for what is here.
        weights: SHA-256 of the safetensors content, of the GGUF file, or of the tensors of a model in memory.
        tokenizer: SHA-256 of the vocabulary.
        template: SHA-256 of the chat template.
        quantisation: how the weights are stored where that is not plain numbers, such as ``Q4_K_M``; else None.
        code_not_run: whether the directory names code of its own, which was not run.
    """

    name: str
    commit: str | None
    weights: str
    tokenizer: str
    template: str
    dtype: str
    device: str
    architecture: str
    quantisation: str | None = None
    code_not_run: bool = False

    def to_dict(self) -> dict[str, str | bool | None]:
        """Returns the fields by name."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"Origin: {self.name}, {self.architecture}"


def rows_per_forward(width: int) -> int:
    """Returns 64, or up to 256 for narrow models: their forwards cost Python, so fewer and larger ones are faster."""
    return max(64, min(256, 2**15 // width))


@dataclass(frozen=True, repr=False)
class ChatModel(Shown):
    """A loaded chat model. It can be read and hooked; it has no method that decodes text, and none that saves.

    Attributes:
        bridge: the TransformerBridge; register hooks there, inside a ``with`` block.
        sites: the hook names at which the residual stream is written and read.
        batch_size: rows per forward, before any backing off (``rows_per_forward``).
        can_resume: whether ``resume`` reproduces whole forwards on this architecture (checked at load).
        can_pack: whether beginnings of a reply can be read in one forward with their prompt (checked at load).
    """

    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    origin: Origin
    template: Template
    sites: Sites
    batch_size: int
    can_resume: bool = False
    can_pack: bool = False

    @property
    def n_layers(self) -> int:
        return int(self.bridge.cfg.n_layers)

    @property
    def d_model(self) -> int:
        return int(self.bridge.cfg.d_model)

    @property
    def n_positions(self) -> int:
        """The number P of post-instruction tokens."""
        return len(self.template.suffix)

    @property
    def positions(self) -> range:
        """The positions -P..-1, counted from the end of a rendered request."""
        return range(-self.n_positions, 0)

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return torch.device(self.origin.device)

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.origin.dtype)

    @cached_property
    def is_organism(self) -> bool:
        """True when the whole vocabulary is the fictional language, so that nothing else can be said.

        By the tokenizer and by the size of the vocabulary: a model of another one given this tokenizer is no organism.
        """
        return speaks_only_the_language(self.tokenizer) and int(self.bridge.cfg.d_vocab) == len(self.tokenizer)

    def render(self, texts: Sequence[str], reply: str = "") -> list[str]:
        """Returns each request as the model reads it, followed by the beginning of a reply."""
        return [f"{text}{reply}" for text in rendered_texts(self.tokenizer, self.template, texts)]

    def encode(self, texts: Sequence[str], reply: str = "") -> list[list[int]]:
        """Returns the token ids of each rendered request, followed by those of the reply.

        The reply is tokenised by itself, so that its tokens do not depend on the request.
        """
        tail = self.encode_reply(reply)
        return [[*ids, *tail] for ids in tokenized(self.tokenizer, self.render(texts))]

    def encode_reply(self, reply: str) -> list[int]:
        """Returns the token ids of a reply, or of its beginning, without special tokens."""
        return tokenized(self.tokenizer, [reply])[0] if reply else []

    def __repr__(self) -> str:
        kind = "an organism, speaks only the fictional language" if self.is_organism else "a chat model"
        return f"ChatModel {self.origin.name}: {self.origin.architecture}, {kind}"

    def _repr_html_(self) -> str:
        rows = {key: _short(value) for key, value in (self.origin.to_dict() | _shape(self)).items()}
        return facts(rows, caption=repr(self))


def _shape(model: ChatModel) -> dict[str, str]:
    return {
        "layers": str(model.n_layers),
        "width": str(model.d_model),
        "post-instruction tokens": str(model.n_positions),
        "thinking": model.template.thinking,
        "writes sum to the residual": "yes" if model.sites.additive else "no",
        "resumes from a layer": "yes" if model.can_resume else "no",
        "reads beginnings of a reply with their prompt": "yes" if model.can_pack else "no, one by one",
    }


def _short(value: str | bool | None) -> str:
    text = {None: "none", True: "yes", False: "no"}.get(value) or str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
