"""Groups of prompts: what a guardrail is located on, and what it is then measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refusalscope.prompts import Prompt, Prompts
from refusalscope.reprs import Shown

Grouping = Callable[[Prompt], str]


@dataclass(frozen=True, repr=False)
class Group(Shown):
    """Prompts of one group, as indices into ``prompts.restricted`` and ``prompts.harmless``.

    Attributes:
        reason: why nothing can be located or measured on it; empty when it holds both classes.
    """

    name: str
    restricted: tuple[int, ...]
    harmless: tuple[int, ...]

    @property
    def reason(self) -> str:
        missing = [label for label in ("restricted", "harmless") if not getattr(self, label)]
        return f"group {self.name!r} has no {' and no '.join(missing)} prompts" if missing else ""


def by_category(prompt: Prompt) -> str:
    """Returns what a prompt asks about."""
    return prompt.category


def by_template(prompt: Prompt) -> str:
    """Returns how a prompt is phrased: its cluster."""
    return prompt.cluster


def by_dialect(prompt: Prompt) -> str:
    """Returns what comes before the first ``/`` of a prompt's cluster: the dialect of the organisms' language."""
    return prompt.cluster.split("/")[0]


def groups(prompts: Prompts, grouping: Grouping) -> tuple[Group, ...]:
    """Returns the groups of some prompts in order of name, each restricted group with the harmless prompts that match.

    A harmless prompt belongs to the group of its twin (``pair``), and without one to its own. A group that is left
    without harmless prompts is given those of its templates. Groups of one class only are kept, with their reason.
    """
    asked, harmless = prompts.restricted, prompts.harmless
    of_twin = {row.pair: grouping(row) for row in asked if row.pair is not None}
    of_asked = [grouping(row) for row in asked]
    of_harmless = [of_twin.get(row.id, grouping(row)) for row in harmless]
    made = [_group(name, of_asked, of_harmless, prompts) for name in sorted(set(of_asked))]
    served = {index for group in made for index in group.harmless}
    alone = sorted({name for index, name in enumerate(of_harmless) if index not in served} - set(of_asked))
    return (*made, *(Group(name, (), _where(of_harmless, name)) for name in alone))


def _group(name: str, of_asked: Sequence[str], of_harmless: Sequence[str], prompts: Prompts) -> Group:
    asked, matched = _where(of_asked, name), _where(of_harmless, name)
    if not matched:
        templates = {prompts.restricted[index].cluster for index in asked}
        matched = tuple(i for i, row in enumerate(prompts.harmless) if row.cluster in templates)
    return Group(name, asked, matched)


def _where(names: Sequence[str], name: str) -> tuple[int, ...]:
    return tuple(index for index, other in enumerate(names) if other == name)
