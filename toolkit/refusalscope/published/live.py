"""The figures of the literature measured on a model that is here, in the frames that the published numbers come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import pandas as pd

from refusalscope import stats
from refusalscope.effect import Baseline
from refusalscope.interventions import ablate, add
from refusalscope.metrics import cross_entropy, kl, margin, opening_margin, refuses
from refusalscope.model.chat import ChatModel
from refusalscope.openings import default_openings
from refusalscope.outcomes import outcomes
from refusalscope.published.facts import interval
from refusalscope.published.runs import cosines_between
from refusalscope.subspace import Candidates, Subspace


def cosines(candidates: Candidates, model: str) -> pd.DataFrame:
    """Returns the cosine of every two candidates of rank one, as `published.runs` does for a published run."""
    return cosines_between(candidates.vectors[:, :, 0], model)


def losses(model: ChatModel, subspace: Subspace, texts: Sequence[str], *, corpus: str) -> pd.DataFrame:
    """Returns mean cross-entropy of neutral texts in nats per token: base, ablated, and with the vector added."""
    places = {"base": nullcontext(), "ablated": ablate(model, subspace), "added": add(model, subspace)}
    found = []
    for condition, place in places.items():
        with place:
            estimate = stats.mean(cross_entropy(model, texts).double().numpy(), unit="nats")
        found.append({"model": model.origin.name, "corpus": corpus, "condition": condition, **interval(estimate)})
    return pd.DataFrame(found)


def refusals(before: Baseline, subspace: Subspace) -> pd.DataFrame:
    """Returns shares of prompts refused at temperature zero: restricted under ablation, harmless under addition.

    Columns as `published.refusals`, the intervals clustered by phrasing.
    """
    asked = {"restricted": before.prompts.restricted, "harmless": before.prompts.harmless}
    with ablate(before.model, subspace):
        ablated = refuses(before.model, asked["restricted"], before.readout)
    with add(before.model, subspace):
        added = refuses(before.model, asked["harmless"], before.readout)
    read = {"restricted, before": before.refused, "restricted, ablated": ablated}
    read |= {"harmless, before": ~before.answered, "harmless, added": added}
    found = []
    for name, values in read.items():
        estimate = stats.rate(values.numpy(), clusters=asked[name.split(",")[0]].clusters)
        found.append({"condition": name, "group": before.model.origin.name, **interval(estimate)})
    return pd.DataFrame(found)


def removals(before: Baseline, subspaces: Mapping[str, Subspace]) -> pd.DataFrame:
    """Returns what refuses still and the damage, a row per ablated subspace.

    Columns `study model kl value low high n`, as `published.removals`.
    """
    found = []
    for name, subspace in subspaces.items():
        with ablate(before.model, subspace):
            left = refuses(before.model, before.prompts.restricted, before.readout)
            damage = kl(before.model, before.prompts.harmless, before.harmless_base)[before.answered]
        rate = interval(stats.rate(left.numpy(), clusters=before.prompts.restricted.clusters))
        found.append({"study": before.model.origin.name, "model": name, "kl": float(damage.mean()), **rate})
    return pd.DataFrame(found)


def judgements(before: Baseline, subspace: Subspace, *, doses: Sequence[float]) -> pd.DataFrame:
    """Returns how many restricted prompts each judge calls refused, at each dose of ablation; organisms only.

    The judges: the margin of the first token; the margin of whole openings; the decoded answer, once as a refusal in
    the words of the language, once as anything but the right answer. Columns as `published.judgements`.

    Raises:
        ContractError: for a model that is no organism, whose answers are never decoded.
    """
    model, prompts = before.model, before.prompts.restricted
    found = []
    for dose in doses:
        place: AbstractContextManager = ablate(model, subspace, dose=dose) if dose else nullcontext()
        with place:
            said = outcomes(model, prompts)
            flags = {
                "first token": (margin(model, prompts, before.readout) > 0).tolist(),
                "opening": (opening_margin(model, prompts, default_openings(model)) > 0).tolist(),
                "refusal phrase": [one == "refused" for one in said],
                "not the right answer": [one != "complied" for one in said],
            }
        answers = f"ablated, dose {dose:g}" if dose else "before"
        for judge, each in flags.items():
            row = {"answers": answers, "judge": judge, "refused": sum(each)}
            found.append({**row, **interval(stats.rate(each, clusters=prompts.clusters))})
    return pd.DataFrame(found)
