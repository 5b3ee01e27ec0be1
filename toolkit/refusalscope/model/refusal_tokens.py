"""Which first tokens mean refusal, for this model: discovered from its own probabilities, or given and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import MeasurementError
from refusalscope.model.batching import Batch, forward, map_rows
from refusalscope.model.chat import ChatModel
from refusalscope.prompts import Prompts
from refusalscope.reprs import Shown, facts

LEAST_MASS, LEAST_RATIO = 0.02, 5.0
SHOWN = 5
TOKENS_FOLLOW = " Nearest ("  # in an error; from here on it spells first tokens, which stay out of results (C5)
SPACES = ("", "▁", "Ġ")  # none, and how pieces and bytes spell one


@dataclass(frozen=True, repr=False)
class RefusalTokens(Shown):
    """The set R of first response tokens that count as refusal.

    Attributes:
        ids, tokens: token ids, and the tokens as the vocabulary spells them.
        mass: mean first-token probability of R on restricted prompts, at baseline; low mass makes margins meaningless.
        harmless_mass: the same on harmless prompts.
        n: the number of restricted prompts.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    mass: float
    harmless_mass: float
    n: int
    how: Literal["discovered", "given"]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"RefusalTokens {self.how}: {', '.join(repr(token) for token in self.tokens)}"

    def _repr_html_(self) -> str:
        rows = {
            "tokens": ", ".join(repr(token) for token in self.tokens),
            "mass on restricted prompts": f"{self.mass:.2f}",
            "mass on harmless prompts": f"{self.harmless_mass:.2f}",
            "restricted prompts": str(self.n),
        }
        return facts(rows, caption=f"Refusal tokens, {self.how}")


def discover_refusal_tokens(model: ChatModel, prompts: Prompts, *, most: int = 8) -> RefusalTokens:
    """Returns the tokens that begin replies to restricted prompts and hardly ever begin those to harmless ones.

    In decreasing order of mean restricted minus mean harmless probability: those with at least 2% restricted mass,
    and at least five times the harmless mass.

    Args:
        model: at baseline, with no hook registered.
        prompts: the ``locate`` split, both labels. Using ``report`` here would make every later number too good.
        most: how many tokens at the most.

    Raises:
        MeasurementError: when no token qualifies, with the masses of those nearest to it; they are spelled for an
            organism only.
    """
    restricted, harmless = _first_token_means(model, prompts)
    order = torch.argsort(restricted - harmless, descending=True, stable=True)[:most]
    enough = (restricted >= LEAST_MASS) & (restricted >= LEAST_RATIO * harmless)
    ids = tuple(int(token) for token in order if enough[token])
    if not ids:
        raise MeasurementError(_diagnosis(model, restricted, harmless))
    return _made(model, ids, restricted, harmless, prompts, how="discovered")


def given_refusal_tokens(model: ChatModel, strings: Sequence[str], prompts: Prompts) -> RefusalTokens:
    """Returns refusal tokens given as text, each with and without a leading space where that is a single token.

    Both forms are also looked up as the vocabulary spells them: a tokenizer that puts a space before the first word
    cannot be asked for the form without one.

    Raises:
        MeasurementError: for a string that is a single token in neither form.
    """
    ids = tuple(dict.fromkeys(token for text in strings for token in _single_tokens(model, text)))
    if not ids:
        raise MeasurementError("No refusal string was given. Give at least one, or discover them.")
    restricted, harmless = _first_token_means(model, prompts)
    return _made(model, ids, restricted, harmless, prompts, how="given")


def _made(
    model: ChatModel, ids: tuple[int, ...], restricted: Tensor, harmless: Tensor, prompts: Prompts, *, how
) -> RefusalTokens:
    chosen = torch.tensor(ids)
    mass, harmless_mass = float(restricted[chosen].sum()), float(harmless[chosen].sum())
    return RefusalTokens(ids, _spelled(model, ids), mass, harmless_mass, len(prompts.restricted), how)


def _spelled(model: ChatModel, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(model.tokenizer.convert_ids_to_tokens(token)) for token in ids)


def _first_token_means(model: ChatModel, prompts: Prompts) -> tuple[Float[Tensor, " vocab"], Float[Tensor, " vocab"]]:
    if not len(prompts.restricted) or not len(prompts.harmless):
        raise MeasurementError(f"Refusal tokens need both labels, and these are {prompts!r}.")
    return _mean_first(model, prompts.restricted), _mean_first(model, prompts.harmless)


def _mean_first(model: ChatModel, prompts: Prompts) -> Float[Tensor, " vocab"]:
    sums: list[Tensor] = []

    def first(batch: Batch) -> Tensor:
        # Only the sum is held: prompts × vocabulary would not fit for a large vocabulary.
        sums.append(forward(model, batch)[:, -1].softmax(-1).double().sum(0).cpu())
        return batch.rows

    map_rows(model, model.encode(prompts.texts), first)
    return torch.stack(sums).sum(0) / len(prompts)


def _single_tokens(model: ChatModel, text: str) -> list[int]:
    unknown, word, vocabulary = model.tokenizer.unk_token_id, text.strip(), model.tokenizer.get_vocab()
    encoded = [model.encode_reply(form) for form in (word, f" {word}") if word]
    spelled = [vocabulary[form] for form in (f"{space}{word}" for space in SPACES) if word and form in vocabulary]
    single = [token for token in (*(ids[0] for ids in encoded if len(ids) == 1), *spelled) if token != unknown]
    if not single:
        raise MeasurementError(f"{text!r} is no single token of {model.origin.name}. Give the beginning that is one.")
    return single


def _diagnosis(model: ChatModel, restricted: Tensor, harmless: Tensor) -> str:
    nearest = torch.argsort(restricted - harmless, descending=True, stable=True)[:SHOWN].tolist()
    # How replies to restricted prompts begin is text from a model: only an organism's is spelled (C5).
    spelled = [f"{token!r} " if model.is_organism else "" for token in _spelled(model, nearest)]
    masses = zip(spelled, nearest, strict=True)
    table = ", ".join(f"{token}{restricted[i]:.3f} and {harmless[i]:.3f}" for token, i in masses)
    needed = f"at least {LEAST_MASS} on restricted prompts and {LEAST_RATIO:g} times the harmless mass"
    return (
        f"{model.origin.name}: no first token has {needed}.{TOKENS_FOLLOW}restricted and harmless mass): {table}. "
        "Either the model does not refuse these prompts, or its refusals begin like its answers: give the tokens."
    )
