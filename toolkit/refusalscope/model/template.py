"""How a chat model wants to be spoken to, found from its own chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import takewhile
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from refusalscope.errors import ModelError
from refusalscope.model.digests import text_digest

Thinking = Literal["off", "absent", "open"]
PINNED = date(2024, 7, 26)
TODAY = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<style>.*?)(?P=quote)\s*\)""")
ENDINGS = ("Why not?", "Name one.", "List 7", "go on!", "(see below)")
N_WORDS = 8


@dataclass(frozen=True, repr=False)
class Template:
    """What rendering a request adds to it.

    Attributes:
        suffix: the post-instruction tokens, the same after every request; positions -P..-1 are inside them.
        source: the Jinja template itself.
        system: a system message to send first; None leaves the template's own default, if it has one.
        thinking: "off" when the template has a switch and it is off; "open" when it opens a thought that cannot be
            switched off, so that the first response token is a thought; "absent" otherwise.
        dated: whether the template writes today's date; it is told 26 July 2024, so that tokens last.
    """

    suffix: tuple[int, ...]
    source: str
    system: str | None = None
    thinking: Thinking = "absent"
    dated: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the template and the system message sent with it."""
        return text_digest(self.source if self.system is None else f"{self.source}\0{self.system}")

    def __repr__(self) -> str:
        return f"Template: thinking {self.thinking}, system message {'the default' if self.system is None else 'given'}"


def find_template(tokenizer: PreTrainedTokenizerBase, *, name: str) -> Template:
    """Returns the template of a tokenizer, with its post-instruction tokens found by rendering different requests.

    The requests end in different words of the model's own vocabulary and in different punctuation, so that no token
    of a request, nor one merged from its last character, counts as post-instruction.

    Raises:
        ModelError: when there is no chat template, or nothing common follows the requests.
    """
    try:
        source = tokenizer.get_chat_template()
    except ValueError as error:
        fix = "Set tokenizer.chat_template and tokenizer.save_pretrained into the model's directory."
        raise ModelError(f"{name}: its tokenizer has no chat template. {fix}") from error
    bare = Template((), source, dated="date_string" in source or "strftime_now" in source)
    rendered = rendered_texts(tokenizer, bare, [*ENDINGS, *_words(tokenizer)])
    suffix = _common_suffix(tokenized(tokenizer, rendered))
    if not suffix:
        raise ModelError(f"{name}: its chat template adds no token after a request, so no position is defined.")
    return Template(suffix, source, thinking=_thinking(source, rendered[0]), dated=bare.dated)


def rendered_texts(tokenizer: PreTrainedTokenizerBase, template: Template, texts: Sequence[str]) -> list[str]:
    """Returns each request as the text the model reads up to its own turn, special tokens spelled out."""
    before = [] if template.system is None else [{"role": "system", "content": template.system}]
    extra: dict[str, Any] = {"enable_thinking": False} if "enable_thinking" in template.source else {}
    if template.dated:
        extra |= {"date_string": PINNED.strftime("%d %b %Y"), "chat_template": _dated(template.source)}
    chats = [[*before, {"role": "user", "content": text}] for text in texts]
    return [
        str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **extra)) for chat in chats
    ]


def tokenized(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Returns token ids without adding special tokens: the template has spelled out those it wants."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []


def _dated(source: str) -> str:
    return TODAY.sub(lambda call: repr(PINNED.strftime(call["style"])), source)


def _words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    special = set(tokenizer.all_special_tokens)
    plain = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and word not in special)
    return plain[:: max(1, len(plain) // N_WORDS)][:N_WORDS]


def _common_suffix(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    backwards = zip(*(reversed(row) for row in rows), strict=False)
    common = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, backwards)]
    return tuple(reversed(common))


def _thinking(source: str, rendered: str) -> Thinking:
    if rendered.rpartition("<think>")[1] and "</think>" not in rendered.rpartition("<think>")[2]:
        return "open"
    return "off" if "enable_thinking" in source else "absent"
