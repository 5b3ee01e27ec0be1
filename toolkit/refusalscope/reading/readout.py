"""The readout: openings of refusals and of answers, and what next-token probabilities say of them.

For a prompt x and a prefix-free set O of refusal openings, teacher-forced,

    p_O(x) = Σ_{o ∈ O} Π_t p(o_t | x, o_<t),    m(x) = log p_O − log(1 − p_O)  in nats,

and x is *refused* where the greedy path from x enters O: at every step of some opening the most likely token is the
opening's. One-token openings are the refusal tokens of Arditi et al. (2024), and m is then their log-odds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusalscope.model.continuations import Tree
from refusalscope.reprs import Shown, facts

Opening = tuple[int, ...]
How = Literal["discovered", "given"]


@dataclass(frozen=True, repr=False, eq=False)
class Read(Shown):
    """What the logits behind a prompt say, one value per row."""

    margin: Float[Tensor, " row"]
    refuses: Bool[Tensor, " row"]
    complies: Bool[Tensor, " row"]
    unread: Float[Tensor, " row"]

    def __repr__(self) -> str:
        return "Read: margin, refusal, compliance and unread mass of every row"


@dataclass(frozen=True, repr=False)
class Readout(Shown):
    """How a model opens a refusal and an answer, as short token sequences, none the beginning of another.

    Attributes:
        refusals, compliances: token ids of every opening. Without compliance openings, every reply that opens
            otherwise than with a refusal counts as an answer, and no mass is unread.
        phrases: what the refusals are known by: shipped phrases that replies matched, or the openings that were given.
        how: found in the model's own replies, or given.
        mass, harmless_mass: mean p_O of restricted and of harmless prompts, at baseline.
        compliance_mass: mean p_C of harmless prompts.
        n: restricted prompts these are means of.
        declined: how many of them the model's own reply declines; None where replies were not read.
        uncovered: how many of those declining replies no opening reads; None likewise.
    """

    refusals: tuple[Opening, ...]
    compliances: tuple[Opening, ...] = ()
    phrases: tuple[str, ...] = ()
    how: How = "given"
    mass: float = float("nan")
    harmless_mass: float = float("nan")
    compliance_mass: float = float("nan")
    n: int = 0
    declined: int | None = None
    uncovered: int | None = None

    @cached_property
    def tree(self) -> Tree:
        """The beginnings behind which the next token is read."""
        return Tree.before((*self.refusals, *self.compliances))

    @property
    def one_token(self) -> bool:
        """Whether the first token of a reply says everything, so that a prompt's plain forward is enough."""
        return len(self.tree) == 1

    @property
    def first_tokens(self) -> tuple[int, ...]:
        """The refusal openings that are one token long."""
        return tuple(opening[0] for opening in self.refusals if len(opening) == 1)

    def read(self, logits: Float[Tensor, "row node vocab"]) -> Read:
        """Returns margin, refusal, compliance and unread mass of every row, from logits at the nodes of ``tree``."""
        top, log_z = logits.argmax(-1), logits.logsumexp(-1)
        margin = self.margin_of(logits)
        refused = self._mass(logits, log_z, self.refusals)
        complied = self._mass(logits, log_z, self.compliances) if self.compliances else 1 - refused
        refuses = self._greedy(top, self.refusals)
        complies = self._greedy(top, self.compliances) if self.compliances else ~refuses
        broken = ~margin.isfinite() & log_z[:, 0].isnan()
        return Read(margin, refuses & ~broken, complies & ~broken, (1 - refused - complied).clamp(min=0))

    def margin_of(self, logits: Float[Tensor, "row node vocab"]) -> Float[Tensor, " row"]:
        """Returns m in nats, exact where p_O is all but 0 or 1: 1 − p_O is what leaves the openings, node by node."""
        if self.one_token:
            return log_odds(logits[:, 0], self.first_tokens)
        log_z = logits.logsumexp(-1)
        inside = torch.stack([self._log_reach(logits, log_z, opening) for opening in self.refusals]).logsumexp(0)
        nodes = {opening[:length] for opening in self.refusals for length in range(len(opening))}
        leaving = []
        for path in sorted(nodes):
            there = self.tree.node[path]
            further = [o[len(path)] for o in self.refusals if len(o) > len(path) and o[: len(path)] == path]
            out = logits[:, there].clone()
            out[:, further] = -torch.inf
            leaving.append(self._log_reach(logits, log_z, path) + out.logsumexp(-1) - log_z[:, there])
        return inside - torch.stack(leaving).logsumexp(0)

    def _mass(self, logits: Tensor, log_z: Tensor, openings: tuple[Opening, ...]) -> Float[Tensor, " row"]:
        found = [self._log_reach(logits, log_z, opening) for opening in openings]
        return torch.stack(found).logsumexp(0).exp()

    def _log_reach(self, logits: Tensor, log_z: Tensor, path: Opening) -> Float[Tensor, " row"]:
        """log Π_t p(path_t | x, path_<t); zero for the empty path."""
        steps = [(self.tree.node[path[:t]], token) for t, token in enumerate(path)]
        total = torch.zeros(len(logits), dtype=logits.dtype, device=logits.device)
        for node, token in steps:
            total = total + logits[:, node, token] - log_z[:, node]
        return total

    def _greedy(self, top: Tensor, openings: tuple[Opening, ...]) -> Bool[Tensor, " row"]:
        found = torch.zeros(len(top), dtype=torch.bool, device=top.device)
        for opening in openings:
            path = torch.ones_like(found)
            for t, token in enumerate(opening):
                path &= top[:, self.tree.node[opening[:t]]] == token
            found |= path
        return found

    def __len__(self) -> int:
        return len(self.refusals)

    def __repr__(self) -> str:
        known = ", ".join(repr(phrase) for phrase in self.phrases[:4])
        return f"Readout {self.how}: refusals known by {known or 'their tokens'}"

    def _repr_html_(self) -> str:
        rows = {
            "refusals known by": ", ".join(repr(phrase) for phrase in self.phrases),
            "refusal openings, of them longer than a token": _counted(self.refusals),
            "compliance openings, of them longer than a token": _counted(self.compliances),
            "refusal probability, restricted prompts": f"{self.mass:.2f}",
            "refusal probability, harmless prompts": f"{self.harmless_mass:.2f}",
            "restricted prompts": str(self.n),
        }
        if self.declined is not None:
            rows["declined in the model's own words, of them unread"] = f"{self.declined}, {self.uncovered}"
        return facts(rows, caption=f"Readout, {self.how}")


def log_odds(logits: Float[Tensor, "*row vocab"], ids: tuple[int, ...]) -> Float[Tensor, "*row"]:
    """Returns log Σ_{t∈R} p_t − log Σ_{t∉R} p_t in nats, from logits alone: exact where p is all but 0 or 1."""
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[list(ids)] = True
    return logits[..., inside].logsumexp(-1) - logits[..., ~inside].logsumexp(-1)


def _counted(openings: tuple[Opening, ...]) -> str:
    return f"{len(openings)}, {sum(len(opening) > 1 for opening in openings)}"
