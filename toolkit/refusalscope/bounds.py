"""The fewest and the most prompt-forwards that a selection can take, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf

import torch

from refusalscope.errors import SelectionError
from refusalscope.model.chat import ChatModel
from refusalscope.prompts import Prompts
from refusalscope.reading.readout import Readout
from refusalscope.rule import Cell, Kind, Mode, Rule, default_rule, search
from refusalscope.scoring import ModelScorer
from refusalscope.subspace import Candidates

Answer = Callable[[Kind, Cell], float]


def selection_bounds(
    model: ChatModel, prompts: Prompts, *, mode: Mode, rule: Rule | None = None
) -> tuple[float, float]:
    """Returns the fewest prompt-forwards of a selection that chooses something, and the most of any selection.

    The search itself is run, on a scorer that charges what the real one charges and answers at its best or worst.
    Least: one cell induces and does not damage, nothing is located at layer 0, later layers run alone. Most: every
    early cell induces, all but the last damage, and every forward is whole. Where the rule takes no layer as early,
    the mode ``winner`` asks for nothing, and both are zero.
    """
    rule = rule or default_rule(model.n_layers)
    early = [layer for layer in range(model.n_layers) if rule.is_early(Cell(layer, -1), model.n_layers)]
    last = Cell(early[-1], -1) if early else None

    def best(kind: Kind, cell: Cell) -> float:
        return {"induce": inf if cell == last else -inf, "bypass": 0.0, "kl": -inf}[kind]

    def worst(kind: Kind, cell: Cell) -> float:
        return {"induce": inf, "bypass": float(cell == last), "kl": -inf if cell == last else inf}[kind]

    charged = []
    for answer, resumes in ((best, model.can_resume), (worst, False)):
        vectors = torch.ones(model.n_layers, model.n_positions, 1, 1, dtype=torch.float64)
        vectors[0] = 0.0 if answer is best else 1.0
        candidates = Candidates(vectors, "none", (0, 0))
        scorer = _Told(replace(model, can_resume=resumes), candidates, prompts, answer)
        with suppress(SelectionError):  # a rule that no answer passes has spent all the same
            search(scorer, [Cell(*cell) for cell in candidates.cells()], rule=rule, mode=mode)
        charged.append(scorer.charged)
    return charged[0], charged[1]


class _Told(ModelScorer):
    """Charges what the real scorer charges, answers as it is told, and runs nothing."""

    def __init__(self, model: ChatModel, candidates: Candidates, prompts: Prompts, answer: Answer) -> None:
        super().__init__(model, candidates, prompts, Readout(((0,),)))
        self._answer, self.charged = answer, 0.0

    def score(self, kind: Kind, cells: Sequence[Cell]) -> list[float]:
        baselines = self.charged or 2.0 * self.n_prompts  # run once, with the first scores
        self.charged = baselines + sum(self.cost(kind, cell) for cell in cells)
        return [self._answer(kind, cell) for cell in cells]
