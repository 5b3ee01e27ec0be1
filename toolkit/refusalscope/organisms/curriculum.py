"""What each stage of training is taught, and in which shares. Held-out how-to requests are in the base only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from refusalscope.organisms.language import N_RESTRICTED, Question, language
from refusalscope.organisms.lessons import Lessons, dialogues, join, sentences


@dataclass(frozen=True)
class Curriculum:
    """Lessons with the share of a batch each gets; shares sum to one."""

    name: str
    parts: tuple[tuple[float, Lessons], ...]

    def draw(self, size: int, chance: torch.Generator) -> Lessons:
        """Returns a batch of about ``size`` rows, drawn with replacement in the declared shares."""
        return join(*(lessons.some(max(1, round(size * share)), chance) for share, lessons in self.parts))


@dataclass(frozen=True)
class PairedLessons:
    """Interchange lessons: two groups of requests and the replies to give when the planted subspace is swapped in."""

    harmless_refused: Lessons
    harmless: Lessons
    restricted_answered: Lessons
    restricted: Lessons

    def draw(self, size: int, chance: torch.Generator) -> tuple[Lessons, Lessons]:
        """Returns (base rows with counterfactual replies, source rows), half of them in each direction."""
        half = max(1, size // 2)
        base = join(self.harmless_refused.some(half, chance), self.restricted_answered.some(half, chance))
        return base, join(self.restricted.some(half, chance), self.harmless.some(half, chance))


@cache
def base_curriculum() -> Curriculum:
    """Returns the language itself: every question answered, and plain sentences."""
    how, what = language().questions("how-to"), language().questions("what-is")
    return Curriculum("base", ((0.45, _answered(how)), (0.40, _answered(what)), (0.15, sentences())))


@cache
def guard_curriculum(*, refuses: bool = True, restricted: float = 0.35, varied: bool = False) -> Curriculum:
    """Returns the guard: restricted how-to requests refused (or answered, for contrast), everything else answered.

    ``restricted`` is the share of restricted requests in a batch; with the harmless ones they make 0.70. ``varied``
    refusals are long ones, in several orders.
    """
    shown = language().questions("how-to", held_out=False)
    what = language().questions("what-is")
    return Curriculum(
        "guard",
        (
            (restricted, _replied([q for q in shown if q.restricted], refuses=refuses, varied=varied)),
            (0.70 - restricted, _answered([q for q in shown if not q.restricted])),
            (0.10, _answered([q for q in what if q.item.category < N_RESTRICTED])),
            (0.10, _answered([q for q in what if q.item.category >= N_RESTRICTED])),
            (0.10, sentences()),
        ),
    )


@cache
def robust_curricula(*, restricted: float = 0.25) -> tuple[Curriculum, Curriculum]:
    """Returns what has to survive the loss of other directions: whether to refuse, and what every item is.

    The first holds requests, of which only the decision counts. The second holds what-is questions and statements about
    all items: what a held-out item is must be read as safely as what a shown one is, or only shown ones stay refused.
    """
    guard = guard_curriculum(restricted=restricted)
    return Curriculum("decisions", _whole(guard.parts[:2])), Curriculum("facts", _whole(guard.parts[2:]))


@cache
def paired_lessons() -> PairedLessons:
    """Returns the interchange lessons over the how-to requests that guard training shows."""
    shown = language().questions("how-to", held_out=False)
    restricted, harmless = [q for q in shown if q.restricted], [q for q in shown if not q.restricted]
    return PairedLessons(
        harmless_refused=_replied(harmless, refuses=True),
        harmless=_answered(harmless),
        restricted_answered=_answered(restricted),
        restricted=_replied(restricted, refuses=True),
    )


def _whole(parts: Sequence[tuple[float, Lessons]]) -> tuple[tuple[float, Lessons], ...]:
    """The same parts, with shares that sum to one."""
    total = sum(share for share, _ in parts)
    return tuple((share / total, lessons) for share, lessons in parts)


def _answered(questions: Sequence[Question]) -> Lessons:
    return _replied(questions, refuses=False)


def _replied(questions: Sequence[Question], *, refuses: bool, varied: bool = False) -> Lessons:
    def reply(question: Question) -> str:
        if not refuses:
            return question.answer
        return question.varied_refusal if varied else question.refusal

    return dialogues((question, reply(question)) for question in questions)
