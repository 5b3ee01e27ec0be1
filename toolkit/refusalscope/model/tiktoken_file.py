"""A vocabulary in tiktoken's format, as Kimi K2 is published with, as a tokenizer that transformers loads.

The file has one token per line: its bytes in base 64, and its rank. Text is split by a pattern that is written in the
publisher's code only; Chinese characters are kept apart from other letters.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers.convert_slow_tokenizer import TikTokenConverter

from refusalscope.errors import ModelError

TIKTOKEN = "tiktoken.model"
RESERVED = 256  # ids behind the vocabulary, for special tokens; those without a name are called by their number
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
BEFORE, CONTRACTED = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{BEFORE}{UPPER}*{LOWER}+{CONTRACTED}",
        f"{BEFORE}{UPPER}+{LOWER}*{CONTRACTED}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


class _Converter(TikTokenConverter):
    """transformers' converter, with the file read here: its own reader needs the package tiktoken."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        super().__init__(vocab_file="", pattern=PATTERN)
        self.ranks = ranks

    def load_tiktoken_bpe(self, tiktoken_url: str) -> dict[bytes, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.ranks


def tokenizer_json(file: Path, settings: Mapping[str, Any], *, name: str) -> str:
    """Returns the content of a ``tokenizer.json``, given ``tokenizer_config.json`` with its ``added_tokens_decoder``.

    Raises:
        ModelError: for a file that is not in tiktoken's format, or special tokens inside the vocabulary.
    """
    ranks = _ranks(file, name=name)
    made = _Converter(ranks).converted()
    for token in _specials(settings, first=len(ranks), name=name):
        made.add_tokens([token]) if not token.special else made.add_special_tokens([token])
    return made.to_str()


def _ranks(file: Path, *, name: str) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        for line in file.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise ModelError(
            f"{name}: {file.name} is damaged (line {len(ranks) + 1}). Copy or download it again."
        ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or len([token for token in ranks if len(token) == 1]) != 256:
        raise ModelError(f"{name}: {file.name} lacks ranks or single bytes. Copy or download it again.")
    return ranks


def _specials(settings: Mapping[str, Any], *, first: int, name: str) -> list[AddedToken]:
    """Returns the special tokens in the order of their ids, from the first behind the vocabulary on."""
    declared = settings.get("added_tokens_decoder")
    try:
        given = {int(number): token for number, token in dict(declared or {}).items()}
        texts = {number: (str(token["content"]), bool(token.get("special", True))) for number, token in given.items()}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{name}: tokenizer_config.json has no readable added_tokens_decoder. Copy it again."
        ) from error
    if wrong := [number for number in texts if not first <= number < first + RESERVED]:
        raise ModelError(
            f"{name}: tokenizer_config.json puts a special token at {wrong[0]}, outside the {RESERVED} ids behind the "
            f"{first} of {TIKTOKEN}. Copy or download both again."
        )
    spelled = (texts.get(number, (f"<|reserved_token_{number}|>", True)) for number in range(first, first + RESERVED))
    return [AddedToken(text, normalized=False, special=special) for text, special in spelled]
