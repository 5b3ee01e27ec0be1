"""Diagnosing a model: six questions in the order in which one answer explains the next, each asked once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from refusalscope.bounds import selection_bounds
from refusalscope.capture import capture
from refusalscope.diagnosis.cells import SELECTION, Searched, searched, selection
from refusalscope.diagnosis.channels import CHANNEL, loud_channel
from refusalscope.diagnosis.collapse import ABLATION, ablation
from refusalscope.diagnosis.findings import FIRST, Diagnosis, Finding
from refusalscope.diagnosis.margins import BASELINE, READOUT, baseline_margin, readout_mass, stands
from refusalscope.diagnosis.openings import OPENINGS
from refusalscope.diagnosis.openings import openings as compared
from refusalscope.diagnosis.replies import (
    Replies,
    baseline_of,
    default_neutral,
    default_openings,
    first_words,
    replies,
)
from refusalscope.diagnosis.watching import watched
from refusalscope.effect import Baseline
from refusalscope.errors import InterventionError, MeasurementError, ModelError, PromptError
from refusalscope.interventions import ablate
from refusalscope.locators.mean_difference import mean_difference
from refusalscope.metrics import Openings
from refusalscope.model import ChatModel
from refusalscope.prompts import ContrastSet
from refusalscope.reading import PHRASES_FOLLOW, Readout
from refusalscope.reading import readout as found_readout
from refusalscope.rule import Cell, Rule, default_rule
from refusalscope.scoring import ModelScorer
from refusalscope.subspace import NotExported

ORDER = (BASELINE, READOUT, CHANNEL, SELECTION, ABLATION, OPENINGS)
NO_GUARDRAIL = "not asked: at baseline there is no refusal to locate"
NOT_ABLATED = "not asked: nothing was ablated"
UNTOLD = "Nothing can be told about '{}'."
CHECK_WEIGHTS = "Load the model in float32; if its margins stay so, its weights are damaged."
IN_THE_REASON = "Do what the reason says."
RELOAD = "Load the model again; if it stays so, its architecture needs other hook sites."


@dataclass(frozen=True, eq=False)
class _Question(NotExported):
    """What is asked of which model."""

    model: ChatModel
    prompts: ContrastSet
    openings: Openings
    neutral: tuple[str, ...]
    rule: Rule
    seed: int


class _Known(NamedTuple):
    """The readout, and why openings stand in for it where it could not be discovered; empty where nothing does."""

    readout: Readout
    why: str


@dataclass(eq=False)
class _Record(NotExported):
    """What is known so far. Errors a user can cause become findings, and what depends on them is not asked."""

    found: dict[str, Finding] = field(default_factory=dict)
    pf: float = 0.0

    def ask(self, name: str, work: Callable[[], Finding]) -> None:
        """Adds a finding, or why there is none."""
        with self.or_else(name):
            self.found[name] = work()

    @contextmanager
    def or_else(self, *names: str) -> Iterator[None]:
        """Adds, for each name without a finding, what ended the block: an error of the caller's kind, or a hook's."""
        try:
            yield
        except InterventionError as error:
            self.leave(names, str(error), invalid=True)
        except (MeasurementError, PromptError, ModelError) as error:
            self.leave(names, str(error).split(PHRASES_FOLLOW)[0], action=IN_THE_REASON)

    def or_else_all(self) -> AbstractContextManager[None]:
        """The same for all findings there could be."""
        return self.or_else(*ORDER)

    def leave(self, names: Sequence[str], reason: str, *, invalid: bool = False, action: str = "") -> None:
        """Adds a finding without numbers for each name that has none."""
        state, action = ("invalid", RELOAD) if invalid else ("cannot tell", action)
        for name in names:
            sentence = f"The hooks behind '{name}' did not do what they declare." if invalid else UNTOLD.format(name)
            self.found.setdefault(name, Finding(name, state, sentence, {}, action, reason))


def diagnose(
    model: ChatModel,
    prompts: ContrastSet,
    *,
    readout: Readout | None = None,
    openings: Openings | None = None,
    neutral: Sequence[str] | None = None,
    rule: Rule | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Returns which of six ways of not fitting the picture a model shows, each with its numbers.

    The picture is a direction found as a difference in means, chosen by the selection rule, whose ablation takes the
    refusals and leaves the rest. The six: the baseline margin is not separated; the openings of the readout hold too
    little of the mass; every cell is filtered; a loud channel owns the direction; the ablated model is degenerate;
    readout and fixed openings disagree. The direction is located on ``locate``, chosen on ``select``, and looked at on
    ``report``; where the rule chooses nothing, at the best rejected cell. A guardrail that resists is none of the six:
    then nothing is in the way of measuring it, and the diagnosis says that it does not fit all the same.

    Bad input gives findings that cannot be told, never an error; a hook that did not fire gives an invalid one.

    Args:
        readout: how the model refuses; discovered on ``locate`` where None. Where nothing can be discovered, the first
            words of the refusal openings stand in for it, and the finding says so.
        openings: fixed beginnings of refusals and of answers; an organism's own, or English ones, where None.
        neutral: texts for the cross-entropy, without a chat template; an organism's own, or none, where None.
        rule: the selection rule, whose ``kl_limit`` is also the limit of damage.
        seed: of the bootstrap.

    Example:
        >>> diagnose(load("data/organisms/guarded-0"), ContrastSet.read("data/prompts/organism.jsonl"))
        Diagnosis of guarded-0: fits the picture
    """
    openings = default_openings(model) if openings is None else openings
    neutral = default_neutral(model) if neutral is None else neutral
    rule = rule or default_rule(model.n_layers)
    record, asked = _Record(), _Question(model, prompts, openings, tuple(neutral), rule, seed)
    cell = None
    with record.or_else_all():
        known = _known(record, asked, readout)
        with watched(model):
            base = replies(model, prompts.report, known.readout, openings, asked.neutral)
        record.pf += base.pf
        cell = _findings(record, asked, baseline_of(model, prompts.report, known.readout, base), base, known)
    return Diagnosis(model.origin.name, tuple(record.found[name] for name in ORDER), cell, record.pf)


def estimated_diagnose_cost(
    model: ChatModel,
    prompts: ContrastSet,
    *,
    openings: Openings | None = None,
    neutral: Sequence[str] | None = None,
    rule: Rule | None = None,
) -> float:
    """Returns the most prompt-forwards ``diagnose`` can take, known before anything runs."""
    openings = default_openings(model) if openings is None else openings
    texts = default_neutral(model) if neutral is None else neutral
    each = (2 + len(openings.refusals) + len(openings.compliances)) * len(prompts.report) + len(texts)
    chosen = selection_bounds(model, prompts.select, mode="winner", rule=rule)[1]
    return 4 * len(prompts.locate) + chosen + 2.0 * each


def _known(record: _Record, asked: _Question, given: Readout | None) -> _Known:
    """The readout, or first words of refusal openings where none can be discovered."""
    if given is not None:
        return _Known(given, "")
    located = asked.prompts.locate
    record.pf += 2 * len(located)
    try:
        return _Known(found_readout(asked.model, located), "")
    except MeasurementError as error:
        words, why = first_words(asked.model, asked.openings), str(error).split(PHRASES_FOLLOW)[0]
        if not words:
            raise
        record.pf += len(located)
        return _Known(found_readout(asked.model, located, openings=words), why)


def _findings(record: _Record, asked: _Question, before: Baseline, base: Replies, known: _Known) -> Cell | None:
    """Asks everything, and returns the cell that was looked at."""
    if not all(bool(part.isfinite().all()) for part in (before.restricted, before.harmless)):
        name = asked.model.origin.name
        record.leave(ORDER, f"{name} has margins that are not finite numbers at baseline", action=CHECK_WEIGHTS)
        return None
    record.ask(BASELINE, lambda: baseline_margin(before, seed=asked.seed))
    unread = base.read_restricted.unread
    record.ask(READOUT, lambda: readout_mass(before, unread, base.restricted, why=known.why))
    made = None
    if not stands(before):
        record.leave((CHANNEL, SELECTION, ABLATION), NO_GUARDRAIL, action=FIRST)
    else:
        made = _located(record, asked, before)
    now, missing = None, NO_GUARDRAIL if made is None else NOT_ABLATED
    if made is not None and made.cell is not None:
        now = _ablated(record, asked, before, base, made)
    record.ask(OPENINGS, lambda: compared(before, base, now, seed=asked.seed, missing="" if now else missing))
    return None if made is None else made.cell


def _located(record: _Record, asked: _Question, before: Baseline) -> Searched | None:
    """The rule applied to the differences in means, and whether one channel owns the one looked at."""
    with record.or_else(CHANNEL, SELECTION, ABLATION, OPENINGS):
        acts = capture(asked.model, asked.prompts.locate, keep_each=True)
        record.pf += len(asked.prompts.locate)
        candidates = mean_difference(*acts)
        scorer = ModelScorer(asked.model, candidates, asked.prompts.select, before.readout)
        made = searched(scorer, [Cell(*cell) for cell in candidates.cells()], rule=asked.rule)
        record.pf += made.pf
        record.ask(SELECTION, lambda: selection(made, asked.prompts.select))
        if made.cell is None:
            record.leave((CHANNEL, ABLATION), "not asked: no candidate could be scored", action=FIRST)
        else:
            cell = made.cell
            record.ask(CHANNEL, lambda: loud_channel(acts, cell, asked.prompts.locate, seed=asked.seed))
        return made
    return None


def _ablated(record: _Record, asked: _Question, before: Baseline, base: Replies, made: Searched) -> Replies | None:
    """How replies begin without the direction of the cell, and whether the model is broken then."""
    assert made.cell is not None
    with record.or_else(ABLATION, OPENINGS):
        with ablate(asked.model, made.scorer.subspace(made.cell)) as receipt:
            now = replies(asked.model, asked.prompts.report, before.readout, asked.openings, asked.neutral)
        record.pf += now.pf
        if receipt.state != "valid":
            raise InterventionError(f"{receipt.what}: {receipt.state}.")
        record.ask(ABLATION, lambda: ablation(before, base, now, limit=asked.rule.kl_limit))
        return now
    return None
