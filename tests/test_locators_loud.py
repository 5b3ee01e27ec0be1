"""Locators that do not heed loudness: exact where nothing is loud, and right where the difference in means is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import mstats

from refusalscope.activations import Activations, Moments
from refusalscope.errors import MeasurementError
from refusalscope.linalg import energy_share
from refusalscope.locators.mean_difference import mean_difference
from refusalscope.locators.standardised import in_spreads, standardised
from refusalscope.locators.winsorised import clipped_channels, clipped_prompts, winsorised

N, WIDTH, LOUD, STRONG = 64, 24, 5, 3000.0


def activations(x: torch.Tensor, label: str) -> Activations:
    """Activations with one layer and one position."""
    moments = Moments()
    moments.add(x[:, None, None])
    return moments.activations(label, each=x[:, None, None].float())


def pair(x1: torch.Tensor, x0: torch.Tensor) -> tuple[Activations, Activations]:
    return activations(x1, "restricted"), activations(x0, "harmless")


@pytest.fixture
def truth() -> torch.Tensor:
    """A direction over all channels but the loud one."""
    drawn = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn[LOUD] = 0.0
    return 6 * drawn / drawn.norm()


@pytest.fixture
def quiet(truth) -> tuple[torch.Tensor, torch.Tensor]:
    """White noise in both classes, restricted prompts moved along the truth."""
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(2 * N, WIDTH, generator=noise, dtype=torch.float64)
    return x[:N] + truth, x[N:]


@pytest.fixture
def loud(quiet) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with one channel thousands of times louder on every prompt, telling nothing."""
    made = torch.cat(quiet)
    made[:, LOUD] *= STRONG
    return made[:N], made[N:]


def cosine(found, truth: torch.Tensor) -> float:
    return float(torch.cosine_similarity(found.at(0, -1).vectors[0], truth, dim=0))


LOCATORS = {
    "standardised": standardised,
    "channels": winsorised,
    "prompts": lambda *acts: winsorised(*acts, over="prompts"),
}


@pytest.mark.parametrize("over", ["channels", "prompts"])
def test_winsorising_nothing_is_the_mean_difference(loud, over):
    acts = pair(*loud)
    found = winsorised(*acts, share=0.0, over=over)
    torch.testing.assert_close(found.vectors, mean_difference(*acts).vectors, atol=1e-3, rtol=1e-5)
    assert not torch.allclose(winsorised(*acts, share=0.1).vectors, mean_difference(*acts).vectors, atol=1.0)


@pytest.mark.parametrize("name", LOCATORS)
def test_where_nothing_is_loud_all_agree_with_the_mean_difference(quiet, truth, name):
    acts = pair(*quiet)
    assert cosine(LOCATORS[name](*acts), mean_difference(*acts).at(0, -1).vectors[0]) > 0.98
    assert cosine(LOCATORS[name](*acts), truth) > 0.9


@pytest.mark.parametrize("name", ["standardised", "channels"])
def test_under_a_channel_that_is_loud_throughout_the_truth_is_found_where_the_mean_difference_fails(loud, truth, name):
    acts = pair(*loud)
    assert abs(cosine(mean_difference(*acts), truth)) < 0.3
    assert energy_share(mean_difference(*acts).at(0, -1).vectors[0]) > 0.9
    assert cosine(LOCATORS[name](*acts), truth) > 0.9


def test_winsorising_over_prompts_does_not_tame_a_channel_that_is_loud_throughout(loud, truth):
    """What its docstring says: all values of the channel are large, so none of them is extreme for it."""
    assert abs(cosine(LOCATORS["prompts"](*pair(*loud)), truth)) < 0.3


@pytest.mark.parametrize("name", LOCATORS)
def test_under_a_channel_that_is_loud_on_few_prompts_the_truth_is_found_by_all(quiet, truth, name):
    x1 = quiet[0].clone()
    x1[:3, LOUD] = 20 * STRONG
    acts = pair(x1, quiet[1])
    assert abs(cosine(mean_difference(*acts), truth)) < 0.3
    assert cosine(LOCATORS[name](*acts), truth) > 0.9


def test_the_standardised_direction_does_not_change_when_channels_are_rescaled(quiet):
    scales = torch.logspace(-2, 3, WIDTH, dtype=torch.float64)
    plain, scaled = pair(*quiet), pair(*(x * scales for x in quiet))
    before, after = (standardised(*acts).at(0, -1).basis for acts in (plain, scaled))
    torch.testing.assert_close(before, after, atol=1e-9, rtol=1e-9)
    turned = [mean_difference(*acts).at(0, -1).basis[:, 0] for acts in (plain, scaled)]
    assert abs(float(turned[0] @ turned[1])) < 0.7


def test_the_standardised_direction_is_the_mean_difference_of_z_scores(loud):
    pooled = torch.cat(loud)
    z = (pooled - pooled.mean(0)) / pooled.std(0, correction=0)
    expected = z[:N].mean(0) - z[N:].mean(0)
    assert cosine(standardised(*pair(*loud)), expected) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("locator", [standardised, winsorised])
def test_signs_and_norms_are_those_of_the_mean_difference(loud, locator):
    acts = pair(*loud)
    plain, found = (made(*acts).at(0, -1).vectors[0] for made in (mean_difference, locator))
    assert found.norm() == pytest.approx(float(plain.norm()))
    assert float(found @ plain) > 0


@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.3])
def test_clipping_over_prompts_is_scipys(loud, share):
    pooled = torch.cat(loud)
    expected = mstats.winsorize(pooled.numpy(), limits=(share, share), axis=0)
    np.testing.assert_allclose(clipped_prompts(pooled, share).numpy(), np.asarray(expected))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25])
def test_clipping_over_channels_is_done_row_by_row(loud, share):
    pooled, count = torch.cat(loud), int(share * WIDTH)
    for row, clipped in zip(pooled, clipped_channels(pooled, share), strict=True):
        ceiling = sorted(row.abs().tolist())[WIDTH - 1 - count]
        expected = [max(-ceiling, min(ceiling, value)) for value in row.tolist()]
        assert clipped.tolist() == expected


def test_a_channel_that_never_varies_gets_zero():
    spread = torch.tensor([2.0, 0.0], dtype=torch.float64)
    found = in_spreads(torch.tensor([1.0, 0.0], dtype=torch.float64), spread)
    assert found.tolist() == [0.5, 0.0]
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] = 7.0
    assert standardised(*pair(x[:4], x[4:])).at(0, -1).vectors[0, 1] == 0.0


@pytest.mark.parametrize("locator", [standardised, winsorised])
def test_equal_means_give_an_empty_candidate(quiet, locator):
    x = quiet[0]
    both = torch.stack([x, x + 1], dim=1)[:, :, None]  # two layers, and only the second one differs
    moments = [Moments(), Moments()]
    moved = both.clone()
    moved[:, 1] += 1.0
    acts = []
    for label, moment, rows in zip(("restricted", "harmless"), moments, (moved, both), strict=True):
        moment.add(rows)
        acts.append(moment.activations(label, each=rows.float()))
    found = locator(*acts)
    assert found.is_empty(0, -1)
    assert not found.is_empty(1, -1)


def test_standardising_needs_moments_only_and_winsorising_says_what_it_needs(loud):
    bare = [Activations(one.label, one.n, one.mean, one.variance) for one in pair(*loud)]
    torch.testing.assert_close(standardised(*bare).vectors, standardised(*pair(*loud)).vectors)
    with pytest.raises(MeasurementError, match="keep_each=True"):
        winsorised(*bare)


def test_bad_input_is_refused_by_name(loud):
    x1, x0 = loud
    for share in (-0.1, 0.5, float("nan")):
        with pytest.raises(MeasurementError, match="winsorised: a share"):
            winsorised(*pair(x1, x0), share=share)
    poisoned = x1.clone()
    poisoned[0, 0] = float("nan")
    for locator in (standardised, winsorised):
        with pytest.raises(MeasurementError, match="not finite"):
            locator(*pair(poisoned, x0))
        with pytest.raises(MeasurementError, match="two prompts"):
            locator(*pair(x1[:1], x0))
        with pytest.raises(MeasurementError, match="same model"):
            locator(activations(x1, "restricted"), activations(x0[:, :-1], "harmless"))
