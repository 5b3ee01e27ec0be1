"""The fewest and the most prompt-forwards that a selection or a card can take, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from refusalscope.model.chat import ChatModel
from refusalscope.model.refusal_tokens import RefusalTokens
from refusalscope.prompts import ContrastSet, Prompts
from refusalscope.report import Plan, estimated_measure_cost
from refusalscope.rule import Cell, Kind, Mode, Rule, search
from refusalscope.scoring import ModelScorer
from refusalscope.selection import estimated_cost
from refusalscope.subspace import Candidates

Answer = Callable[[Kind, Cell], float]


def selection_bounds(
    model: ChatModel, prompts: Prompts, *, mode: Mode, rule: Rule | None = None
) -> tuple[float, float]:
    """Returns the fewest and the most prompt-forwards a selection that chooses something can take.

    The search itself is run, on a scorer that charges what the real one charges and answers at its best or worst.
    Least: one cell induces and does not damage, nothing is located at layer 0, later layers run alone. Most: every
    early cell induces, all but the last damage, and every forward is whole.
    """
    rule = rule or Rule()
    early = [layer for layer in range(model.n_layers) if rule.is_early(Cell(layer, -1), model.n_layers)]
    last = Cell(early[-1], -1)

    def best(kind: Kind, cell: Cell) -> float:
        return {"induce": 1.0 if cell == last else -1.0, "bypass": 0.0, "kl": 0.0}[kind] + rule.induce_floor

    def worst(kind: Kind, cell: Cell) -> float:
        if kind == "kl":
            return 0.0 if cell == last else 2 * rule.kl_limit
        return 1.0 + rule.induce_floor if kind == "induce" else float(cell == last)

    found = []
    for answer, resumes in ((best, model.can_resume), (worst, False)):
        vectors = torch.ones(model.n_layers, model.n_positions, 1, 1, dtype=torch.float64)
        vectors[0] = 0.0 if answer is best else 1.0
        candidates = Candidates(vectors, "none", (0, 0))
        scorer = _Told(replace(model, can_resume=resumes), candidates, prompts, answer)
        found.append(search(scorer, [Cell(*cell) for cell in candidates.cells()], rule=rule, mode=mode).pf_used)
    return found[0], found[1]


def card_bounds(
    model: ChatModel, prompts: ContrastSet, *, plan: Plan, selected: tuple[float, float]
) -> tuple[float, float]:
    """Returns the fewest and the most prompt-forwards of a card whose rule chooses something.

    Least: tokens, activations, baseline, choice, its effect and placebos; the attack family comes on top, so that this
    bound is far below. A card that ends at its first stage takes less.
    """
    least = 2.0 * len(prompts.locate) + selected[0] + (2 + plan.curve_placebos) * len(prompts.report)
    rule = replace(Rule(), kl_limit=plan.kappa)
    charged = estimated_measure_cost(replace(model, can_resume=False), prompts, plan=plan, rule=rule)
    # The plan charges a selection whose first KL passes; the most is one whose last does.
    surplus = selected[1] - estimated_cost(replace(model, can_resume=False), prompts.select, rule=rule)
    return least, charged + max(0.0, surplus)


class _Told(ModelScorer):
    """Charges what the real scorer charges, answers as it is told, and runs nothing."""

    def __init__(self, model: ChatModel, candidates: Candidates, prompts: Prompts, answer: Answer) -> None:
        super().__init__(model, candidates, prompts, RefusalTokens((0,), ("",), 1.0, 0.0, 0, "given"))
        self._answer = answer

    def score(self, kind: Kind, cells: Sequence[Cell]) -> list[float]:
        return [self._answer(kind, cell) for cell in cells]
