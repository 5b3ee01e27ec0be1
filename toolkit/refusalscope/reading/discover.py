"""Finding how a model refuses: the shortest beginnings of its own refusals that none of its answers shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from refusalscope.errors import MeasurementError
from refusalscope.lexicon import refusal_span
from refusalscope.model.chat import ChatModel
from refusalscope.model.continuations import Tree, read_continuations
from refusalscope.prompts import Prompts
from refusalscope.reading.readout import Opening, Readout
from refusalscope.reading.replies import (
    SHORT,
    greedy_replies,
    has_declined,
    refusal_marks,
    reply_texts,
    whole_or_going_on,
)

MOST_NODES = 16  # places at which a next token is read: what makes a readout cost more than a plain forward
MOST_COMPLIANCES = 64
LONE = 1  # an opening that so few refusals share is read to the end of the phrase that made them refusals
PHRASES_FOLLOW = " Found ("  # in an error; what follows are counts
SPACES = ("", "▁", "Ġ")  # none, and how pieces and bytes spell one


def readout(
    model: ChatModel,
    prompts: Prompts,
    *,
    openings: Sequence[str] | None = None,
    compliances: Sequence[str] = (),
) -> Readout:
    """Returns how a model opens a refusal and an answer, with the mean probability of both.

    Its own greedy replies (24 tokens at the most, in memory only) are marked by the shipped phrases of refusals. A
    refusal opening is the shortest beginning of declining replies that no answering reply shares, and a compliance
    opening likewise. An opening seen once is read to the end of the phrase that declines.
    Costs two prompt-forwards per prompt, and a token at a time for the replies; with ``openings`` given, one.

    Args:
        model: at baseline, with no hook registered.
        prompts: the ``locate`` split, both labels. Using ``report`` here would make every later number too good.
        openings: beginnings of refusals as text, instead of those found; each with and without a leading space.
            One token each: the refusal tokens of the literature.
        compliances: beginnings of answers, where refusals are given.

    Raises:
        MeasurementError: for prompts of one label, when no reply declines, or for an opening that is no text.
        ContractError: for a model with a hook registered that is no organism.

    Example:
        >>> readout(load("data/organisms/guarded-0"), ContrastSet.read("data/prompts/organism.jsonl").locate)
    """
    if not len(prompts.restricted) or not len(prompts.harmless):
        raise MeasurementError(f"A readout needs both labels, and these are {prompts!r}.")
    found = _discovered(model, prompts) if openings is None else _given(model, openings, compliances)
    return _with_masses(model, found, prompts)


def shortest_openings(own: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> list[Opening | None]:
    """Returns, per reply, its shortest beginning that no reply of the others shares; None where there is none."""
    shared = {tuple(reply[:length]) for reply in other for length in range(1, len(reply) + 1)}
    lengths = (range(1, len(reply) + 1) for reply in own)
    return [
        next((tuple(reply[:n]) for n in many if tuple(reply[:n]) not in shared), None)
        for reply, many in zip(own, lengths, strict=True)
    ]


def without_longer(openings: Iterable[Opening]) -> tuple[Opening, ...]:
    """Returns the openings in order, those that begin with another one left out."""
    given = list(dict.fromkeys(openings))
    return tuple(o for o in given if not any(o != other and o[: len(other)] == other for other in given))


def _discovered(model: ChatModel, prompts: Prompts) -> Readout:
    declines = None if model.is_organism else has_declined
    replies = greedy_replies(model, prompts, longest=SHORT, until=declines, progress="how it refuses")
    marks = refusal_marks(model, prompts, replies)
    refusing = [row for row, mark in enumerate(marks) if mark is not None]
    answering = [row for row, mark in enumerate(marks) if mark is None]
    restricted = [row for row in refusing if prompts[row].label == "restricted"]
    if not restricted:
        raise MeasurementError(_nothing(model, prompts, len(refusing)))
    own, others = ([replies[row] for row in rows] for rows in (refusing, answering))
    found = shortest_openings(own, others)
    counts = Counter(opening for opening in found if opening is not None)
    whole = [_to_the_phrase(model, reply, o, counts) for reply, o in zip(own, found, strict=True)]
    supported = Counter(opening for opening in whole if opening is not None)
    refusals = _within_nodes((), supported, MOST_NODES) or without_longer(one for one, _ in supported.most_common(1))
    if not refusals:
        raise MeasurementError(
            f"{model.origin.name}: its {len(refusing)} refusals begin like its answers for {SHORT} tokens. Give the "
            "openings that tell them apart, as openings=[...]."
        )
    answers = Counter(opening for opening in shortest_openings(others, own) if opening is not None)
    return Readout(
        refusals=refusals,
        compliances=_within_nodes(refusals, answers, max(MOST_NODES, len(Tree.before(refusals))))[:MOST_COMPLIANCES],
        phrases=tuple(phrase for phrase, _ in Counter(mark for mark in marks if mark is not None).most_common()),
        how="discovered",
        declined=len(restricted),
        uncovered=sum(not any(replies[row][: len(o)] == o for o in refusals) for row in restricted),
    )


def _to_the_phrase(model: ChatModel, reply: Sequence[int], opening: Opening | None, counts: Counter) -> Opening | None:
    """A well-supported opening as it is; one that hardly any refusal shares, to the end of the declining phrase."""
    if opening is None or counts[opening] > LONE or model.is_organism:
        return opening
    (whole,) = whole_or_going_on(model, [reply])
    span = refusal_span(whole)
    texts = ((n, reply_texts(model, [reply[:n]])[0]) for n in range(len(opening), len(reply) + 1))
    return next((tuple(reply[:n]) for n, text in texts if span and len(text) >= span[1]), tuple(reply))


def _within_nodes(given: Sequence[Opening], counts: Counter[Opening], most: int) -> tuple[Opening, ...]:
    """The openings in order of support, the shorter first, as many as leave at most so many beginnings to read."""
    kept: list[Opening] = []
    for opening, _ in sorted(counts.items(), key=lambda one: (-one[1], len(one[0]))):
        if len(Tree.before([*given, *kept, opening])) <= most:
            kept.append(opening)
    return without_longer(kept)


def _given(model: ChatModel, openings: Sequence[str], compliances: Sequence[str]) -> Readout:
    refusals = without_longer(opening for text in openings for opening in _spelled(model, text))
    if not refusals:
        raise MeasurementError("No refusal opening was given. Give at least one, or let them be found.")
    answers = without_longer(opening for text in compliances for opening in _spelled(model, text))
    clash = [o for o in answers for r in refusals if o[: len(r)] == r or r[: len(o)] == o]
    if clash:
        raise MeasurementError(
            f"{model.origin.name}: a compliance opening and a refusal opening begin alike, so that one reply would be "
            "both. Give longer ones."
        )
    return Readout(refusals=refusals, compliances=answers, phrases=tuple(openings), how="given")


def _spelled(model: ChatModel, text: str) -> list[Opening]:
    """An opening with and without a leading space, as single tokens where it is one; else, and bare, as its tokens."""
    unknown, word, vocabulary = model.tokenizer.unk_token_id, text.strip(), model.tokenizer.get_vocab()
    if not word:
        raise MeasurementError(f"The opening {text!r} holds no text. Give the words a refusal begins with.")
    encoded = [tuple(model.encode_reply(form)) for form in (word, f" {word}")]
    single = [ids for ids in encoded if len(ids) == 1 and ids[0] != unknown]
    single += [(vocabulary[form],) for form in (f"{space}{word}" for space in SPACES) if form in vocabulary]
    known = [ids for ids in encoded if ids and unknown not in ids]
    if not (single or known):
        raise MeasurementError(f"{model.origin.name} has no tokens for the opening {text!r}. Give words it knows.")
    bare = [ids for ids in known if ids == encoded[0] and len(ids) > 1]  # a reply begins without a space
    return list(without_longer([*single, *(bare if single else known)]))


def _with_masses(model: ChatModel, found: Readout, prompts: Prompts) -> Readout:
    masses = []
    for part in (prompts.restricted, prompts.harmless):
        read = read_continuations(
            model, model.encode(part.texts), found.tree, lambda logits, _rows: _masses(found, logits)
        )
        if not bool(read.isfinite().all()):
            raise MeasurementError(f"{model.origin.name}: its logits are not finite numbers. Load it in float32.")
        masses.append(read.double().mean(0).tolist())
    (mass, _), (harmless_mass, compliance_mass) = masses
    return replace(
        found, mass=mass, harmless_mass=harmless_mass, compliance_mass=compliance_mass, n=len(prompts.restricted)
    )


def _masses(found: Readout, logits: Tensor) -> Float[Tensor, "row 2"]:
    """p_O and p_C of every row."""
    read = found.read(logits)
    refused = read.margin.sigmoid()  # m = log p_O − log(1 − p_O)
    return torch.stack([refused, (1 - refused - read.unread).clamp(min=0)], dim=1)


def _nothing(model: ChatModel, prompts: Prompts, elsewhere: int) -> str:
    n = len(prompts.restricted)
    return (
        f"{model.origin.name}: none of its own replies to {n} restricted prompts declines.{PHRASES_FOLLOW}declining "
        f"replies to harmless prompts: {elsewhere}). Either the model does not refuse these prompts, or its refusals "
        "hold none of the shipped phrases: give openings=[...]."
    )
