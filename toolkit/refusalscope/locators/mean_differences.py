"""Differences in means, one per group of restricted prompts: the rank-k relative of the difference in means."""

from __future__ import annotations

from collections.abc import Sequence

from refusalscope.activations import Activations
from refusalscope.locators.samples import check_groups, group_gaps, leading, located
from refusalscope.subspace import Candidates


def mean_differences(
    restricted: Activations,
    harmless: Activations,
    *,
    groups: Sequence[str],
    rank: int = 1,
    against: Sequence[str] | None = None,
) -> Candidates:
    """Returns the k leading directions of the differences r_g = mean of restricted group g − mean of harmless ones.

    The right singular vectors of the rows √(n_g / n) · r_g, uncentred. With a single group, or where all groups differ
    from harmless in one way, the first is the difference in means. Every vector has that difference's norm, and points
    to restricted.

    Args:
        groups: one name per restricted prompt, in the order of capture: categories, or template clusters.
        rank: k, at most the number of groups.
        against: names of the harmless prompts' groups, where they share them (template clusters): each r_g is then
            taken within its group. Without it every r_g also carries what sets the group apart from harmless prompts at
            large, such as its dialect, and that may well be the strongest direction of all.

    Raises MeasurementError where names do not fit the prompts, and as every locator of single activations does. Wrong
    where a group is small: its row is then mostly sampling noise, which the later directions collect.
    """
    check_groups(restricted, harmless, groups, against=against, locator="mean_differences", rank=rank)
    return located(
        restricted,
        harmless,
        lambda x1, x0: leading(group_gaps(x1, x0, groups, against), rank),
        locator="mean_differences",
        rank=rank,
    )
