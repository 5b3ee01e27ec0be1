"""From a model and a contrast set to its optionality: the default family, located, chosen and reported in one call."""

from __future__ import annotations

from dataclasses import replace

from refusalscope.attack import respond
from refusalscope.capture import capture
from refusalscope.effect import baseline
from refusalscope.errors import MeasurementError
from refusalscope.locators import mean_difference
from refusalscope.model import ChatModel, RefusalTokens
from refusalscope.optionality.family import Menu, best_first, family, spans
from refusalscope.optionality.frontier import Optionality, optionality
from refusalscope.optionality.grounds import KAPPA
from refusalscope.optionality.placebos import COUNT, placebo_family
from refusalscope.prompts import ContrastSet


def measured(
    model: ChatModel,
    prompts: ContrastSet,
    refusal: RefusalTokens,
    *,
    placebos: int = COUNT,
    menu: Menu | None = None,
    kappa: float = KAPPA,
    seed: int = 0,
    progress: bool = True,
) -> Optionality:
    """Returns the optionality under the default family: differences in means, and the spans of the best of them.

    The family is fixed on ``locate``, the worst case chosen on ``select``, every number taken on ``report``, beside
    random families; locating counts into ``pf``. For a family of your own, call ``family``, ``respond`` and
    ``optionality`` one after the other.

    Args:
        refusal: discovered on ``locate``, or given.
        placebos: random subspaces measured on ``report``.
        menu: ranks, doses and scopes to try; ``FULL`` where None.

    Raises:
        MeasurementError: when the mean margins on ``locate`` are not separated: there is no refusal to attack.
    """
    if placebos < 1:
        raise MeasurementError(f"{placebos} placebos: no effect stands alone. Ask for at least 1.")
    here = baseline(model, prompts.locate, refusal)
    cells = best_first(here, mean_difference(*capture(model, prompts.locate)), kappa=kappa)
    spanned = best_first(here, spans(cells), kappa=kappa)
    attacks = family([cells, spanned], menu=menu)
    say = (lambda what: f"{model.origin.name}, {what}") if progress else (lambda _: None)
    select = respond(baseline(model, prompts.select, refusal), attacks, progress=say("attacks on select"))
    report = respond(baseline(model, prompts.report, refusal), attacks, progress=say("attacks on report"))
    random = respond(report.before, placebo_family(attacks, count=placebos, seed=seed), progress=say("placebos"))
    found = optionality(select, report, placebos=random, kappa=kappa, seed=seed)
    return replace(found, pf=found.pf + len(prompts.locate) + spanned.pf)
