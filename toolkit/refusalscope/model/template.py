"""How a chat model wants to be spoken to, found from its own chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from refusalscope.errors import ModelError
from refusalscope.model.digests import text_digest
from refusalscope.model.thinking import SWITCHES, Thinking, closing
from refusalscope.reprs import Shown

PINNED = date(2024, 7, 26)
TODAY = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<style>.*?)(?P=quote)\s*\)""")
ENDINGS = ("Why not?", "Name one.", "List 7", "go on!", "(see below)")
N_WORDS = 8
GIVE_ONE = (
    "Pass one: load(..., chat=Chat(template=Path('chat_template.jinja'))), or its text instead of a path; on the "
    "command line --chat-template chat_template.jinja."
)
# What rendering may raise; TemplateError covers the template's own raise_exception, and the sandbox it runs in.
UNRENDERED = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, repr=False)
class Chat(Shown):
    """How to speak to a model, where that is not its own default.

    Attributes:
        template: a Jinja chat template instead of the tokenizer's: a text, or the path of a file.
        system: a system message to send before every request; None leaves what the template does without one.
    """

    template: str | Path | None = None
    system: str | None = None

    def __repr__(self) -> str:
        return f"Chat: template {_whose(self.template)}, system message {_whose(self.system)}"


def _whose(given: object) -> str:
    return "the model's own" if given is None else "given"


@dataclass(frozen=True, repr=False)
class Template(Shown):
    """What rendering a request adds to it.

    Attributes:
        suffix: the post-instruction tokens, the same after every request; positions -P..-1 are inside them.
        source: the Jinja template itself.
        system: a system message to send first; None leaves the template's own default, if it has one.
        thinking: "off" when the template has a switch and it is off; "closed" when an empty thought is written behind
            every request; "absent" otherwise. In each case the first response token is the answer's.
        dated: whether the template writes today's date; it is told 26 July 2024, so that tokens last.
        switches: the template's variables that turn thinking on, told False.
        closing: what is written behind a rendered request to close a thought; empty where nothing needs to be.
    """

    suffix: tuple[int, ...]
    source: str
    system: str | None = None
    thinking: Thinking = "absent"
    dated: bool = False
    switches: tuple[str, ...] = ()
    closing: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the template, the system message sent with it and what closes a thought."""
        spoken = self.source if self.system is None else f"{self.source}\0{self.system}"
        return text_digest(f"{spoken}\0\0{self.closing}" if self.closing else spoken)

    def __repr__(self) -> str:
        return f"Template: thinking {self.thinking}, system message {'the default' if self.system is None else 'given'}"


def find_template(tokenizer: PreTrainedTokenizerBase, *, name: str, chat: Chat | None = None) -> Template:
    """Returns the template of a tokenizer, with its post-instruction tokens found by rendering different requests.

    The requests end in different words of the model's own vocabulary and in different punctuation, so that no token
    of a request, nor one merged from its last character, counts as post-instruction.

    Raises:
        ModelError: when there is no chat template, when it cannot be rendered, when it has no place for the system
            message, or when nothing common follows the requests.
    """
    chat = chat or Chat()
    source = _source(tokenizer, chat, name)
    dated = "date_string" in source or "strftime_now" in source
    with _explained(name):
        bare = _unthinking(tokenizer, Template((), source, dated=dated))
    template = bare if chat.system is None else _told(tokenizer, bare, chat.system, name)
    with _explained(name):
        rendered = rendered_texts(tokenizer, template, [*ENDINGS, *_words(tokenizer)])
    suffix = _common_suffix(tokenized(tokenizer, rendered))
    if not suffix:
        raise ModelError(f"{name}: its chat template adds no token after a request, so no position is defined.")
    return replace(template, suffix=suffix)


def rendered_texts(tokenizer: PreTrainedTokenizerBase, template: Template, texts: Sequence[str]) -> list[str]:
    """Returns each request as the text the model reads up to its answer, special tokens spelled out."""
    return _rendered(tokenizer, template, texts, **dict.fromkeys(template.switches, False))


def tokenized(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Returns token ids without adding special tokens: the template has spelled out those it wants, BOS among them."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []


def _source(tokenizer: PreTrainedTokenizerBase, chat: Chat, name: str) -> str:
    if isinstance(chat.template, Path):
        try:
            return chat.template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{name}: the chat template {chat.template} cannot be read ({error}).") from error
    if chat.template is not None:
        if "{" not in chat.template:
            raise ModelError(f"{name}: the chat template {chat.template!r} is no Jinja text. For a file, give a Path.")
        return chat.template
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        several = ", ".join(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else ""
        lacks = f"has several chat templates ({several}) and no default" if several else "has no chat template"
        raise ModelError(f"{name}: its tokenizer {lacks}. {GIVE_ONE}") from error


def _rendered(
    tokenizer: PreTrainedTokenizerBase, template: Template, texts: Sequence[str], **switches: bool
) -> list[str]:
    before = [] if template.system is None else [{"role": "system", "content": template.system}]
    extra: dict[str, Any] = {**switches, "chat_template": template.source}
    if template.dated:
        extra |= {"date_string": PINNED.strftime("%d %b %Y"), "chat_template": _dated(template.source)}
    chats = [[*before, {"role": "user", "content": text}] for text in texts]
    return [
        str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **extra)) + template.closing
        for chat in chats
    ]


def _unthinking(tokenizer: PreTrainedTokenizerBase, bare: Template) -> Template:
    """Returns the template with its switches found, by what they do, and with what closes an open thought."""
    request = ENDINGS[:1]

    def matters(switch: str) -> bool:
        on, off = (_rendered(tokenizer, bare, request, **{switch: value}) for value in (True, False))
        return on != off

    switches = tuple(switch for switch in SWITCHES if switch in bare.source and matters(switch))
    (rendered,) = rendered_texts(tokenizer, replace(bare, switches=switches), request)
    tail = rendered.rpartition(request[0])[2]
    missing = closing(bare.source, tail, switched=bool(switches))
    thinking: Thinking = "closed" if missing else "off" if switches else "absent"
    return replace(bare, switches=switches, closing=missing, thinking=thinking)


def _told(tokenizer: PreTrainedTokenizerBase, bare: Template, system: str, name: str) -> Template:
    """Returns the template with a system message, having seen that it is sent."""
    told, fix = replace(bare, system=system), "Load it without one, or write the instruction into the prompts."
    try:
        (rendered,) = rendered_texts(tokenizer, told, ENDINGS[:1])
    except UNRENDERED as error:
        raise ModelError(f"{name}: its chat template takes no system message ({_line(error)}). {fix}") from error
    if system.strip() not in rendered:
        raise ModelError(f"{name}: its chat template leaves a system message out. {fix}")
    return told


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except UNRENDERED as error:
        raise ModelError(f"{name}: its chat template cannot be rendered ({_line(error)}). {GIVE_ONE}") from error


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")


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
