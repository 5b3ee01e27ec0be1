"""Selection: the rule against brute force, and both modes against a naive sweep in float64 written from the paper."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import oracle
from conftest import ORGANISMS
from refusalscope import capture, locate, select
from refusalscope.errors import MeasurementError, SelectionError
from refusalscope.organisms.language import language
from refusalscope.prompts import Prompts
from refusalscope.reading import readout
from refusalscope.rule import KINDS, Cell, Rule, Scorer, default_rule, naive_cost, search
from refusalscope.scoring import ModelScorer
from refusalscope.selection import estimated_cost, near_ties
from refusalscope.subspace import Candidates

GUARDED = ("guarded-0", "guarded-1", "guarded-2")
SHARES = 1e-4


class Table:
    """A scorer that reads a table, and notes what it was asked."""

    def __init__(self, frame: pd.DataFrame, n_layers: int, n_prompts: int = 8) -> None:
        self.frame, self.n_layers, self.n_prompts, self.asked = frame, n_layers, n_prompts, []
        self.rows = {Cell(int(row.layer), int(row.position)): row for row in frame.itertuples()}

    def score(self, kind, cells):
        self.asked += [(kind, cell) for cell in cells]
        return [float(getattr(self.rows[cell], kind)) for cell in cells]

    def cost(self, kind, cell):
        return float(self.n_prompts)


def random_table(seed: int) -> Table:
    """A grid with ties and, in some, missing scores."""
    chance = np.random.default_rng(seed)
    layers, positions = int(chance.integers(1, 9)), int(chance.integers(1, 4))
    cells = [(layer, position) for layer in range(layers) for position in range(-positions, 0)]
    frame = pd.DataFrame(cells, columns=["layer", "position"])
    frame["bypass"] = chance.integers(-3, 3, len(cells)).astype(float)
    frame["induce"] = chance.integers(-2, 4, len(cells)).astype(float)
    frame["kl"] = chance.integers(0, 3, len(cells)) * 0.09
    for kind in KINDS:
        frame.loc[chance.random(len(cells)) < 0.1 * (seed % 3), kind] = np.nan
    return Table(frame, layers)


def brute_force(frame: pd.DataFrame, n_layers: int, *, rounded=int) -> Cell | None:
    """The rule as the reference implementation applies it, cell by cell; the first of equals."""
    best, least = None, math.inf
    for row in frame.itertuples():
        allowed = row.kl < 0.1 and row.induce > 0 and row.layer < rounded(0.8 * n_layers)
        if allowed and row.bypass < least:
            best, least = Cell(row.layer, row.position), row.bypass
    return best


def cells_of(table: Table) -> list[Cell]:
    return list(table.rows)


def test_both_modes_find_what_brute_force_finds_on_random_grids():
    empty = 0
    for seed in range(400):
        table = random_table(seed)
        expected = brute_force(table.frame, table.n_layers)
        for mode in ("winner", "map"):
            if expected is None:
                empty += 1
                with pytest.raises(SelectionError):
                    search(table, cells_of(table), rule=Rule(), mode=mode)
            else:
                assert search(table, cells_of(table), rule=Rule(), mode=mode).chosen == expected, seed
    assert 0 < empty < 400


def early(layers: int, **options) -> list[int]:
    """The layers that a rule considers."""
    return [layer for layer in range(layers) if Rule(**options).is_early(Cell(layer, -1), layers)]


@pytest.mark.parametrize("layers", [*range(1, 200), 1000, 10_000])
def test_the_reference_cut_is_rounded_down_and_the_printed_one_is_not(layers):
    """Four fifths in whole numbers: no product of floats can be a hair off."""
    assert early(layers) == list(range(4 * layers // 5))
    assert early(layers, layer_cut="printed") == [layer for layer in range(layers) if 5 * layer < 4 * layers]


CUTS = {5: (4, 4), 6: (4, 5), 16: (12, 13), 18: (14, 15), 24: (19, 20), 30: (24, 24), 32: (25, 26), 40: (32, 32)}


@pytest.mark.parametrize("layers", CUTS)
def test_the_first_late_layer_of_models_of_known_depth(layers):
    cuts = Rule().first_late(layers), Rule(layer_cut="printed").first_late(layers)
    assert cuts == CUTS[layers]


@pytest.mark.parametrize(("share", "layers", "first"), [(0.29, 100, 29), (0.7, 10, 7), (0.57, 100, 57), (1.0, 7, 7)])
def test_a_share_that_floats_cannot_hold_is_cut_where_its_decimals_say(share, layers, first):
    assert Rule(layer_share=share).first_late(layers) == first
    assert Rule(layer_share=share, layer_cut="printed").first_late(layers) == first


def test_the_two_cuts_choose_differently_where_the_cell_of_least_margin_lies_between_them():
    """As in Yi-6B-chat: of 32 layers the 20th is chosen; the 25th, before 25.6 but not before int(25.6), has less."""
    frame = pd.DataFrame({"layer": range(32), "position": -1, "bypass": 0.0, "induce": 1.0, "kl": 0.05})
    frame.loc[20, "bypass"], frame.loc[25, "bypass"] = -6.7, -6.9
    table = Table(frame, 32)
    for cut, layer in (("reference", 20), ("printed", 25)):
        for mode in ("winner", "map"):
            found = search(table, cells_of(table), rule=Rule(layer_cut=cut), mode=mode)
            assert found.chosen == Cell(layer, -1)


def test_an_unknown_way_to_cut_is_refused():
    with pytest.raises(Exception, match="'rounded'"):  # the type check of the tests, or the rule's own
        Rule(layer_cut="rounded")


def test_short_models_are_cut_as_printed_unless_a_rule_is_given():
    assert [default_rule(layers).layer_cut for layers in (3, 6, 9, 10, 32)] == ["printed"] * 3 + ["reference"] * 2
    assert default_rule(6) == Rule(layer_cut="printed")
    assert default_rule(10) == Rule()


def test_an_error_spells_the_cut_that_was_made():
    frame = pd.DataFrame({"layer": range(10), "position": -1, "bypass": -1.0, "induce": 1.0, "kl": 0.5})
    for cut, said in (("reference", r"layer < int\(0\.8 L\)\)"), ("printed", r"layer < 0\.8 L\)")):
        with pytest.raises(SelectionError, match=said):
            search(Table(frame, 10), cells_of(Table(frame, 10)), rule=Rule(layer_cut=cut), mode="winner")


def test_every_cell_has_a_row_a_reason_and_exactly_one_is_chosen():
    for seed in range(100):
        table = random_table(seed)
        if brute_force(table.frame, table.n_layers) is None:
            continue
        for mode in ("winner", "map"):
            found = search(table, cells_of(table), rule=Rule(), mode=mode)
            assert len(found.cells) == len(table.frame)
            assert found.cells["chosen"].sum() == 1
            assert found.cells.loc[found.cells["chosen"], "reason"].item() == "kept"
            assert found.cells["reason"].notna().all()


def test_a_missing_score_makes_a_cell_invalid_and_never_chosen():
    frame = pd.DataFrame(
        {"layer": [0, 1, 2], "position": -1, "bypass": [math.nan, -1.0, -9.0], "induce": 1.0, "kl": 0.0}
    )
    frame.loc[2, "kl"] = math.nan
    for mode in ("winner", "map"):
        found = search(Table(frame, 10), cells_of(Table(frame, 10)), rule=Rule(), mode=mode)
        assert found.chosen == Cell(1, -1)
        assert list(found.cells["reason"]) == ["invalid", "kept", "invalid"]


def test_prompt_forwards_are_those_of_the_scores_asked_for_and_two_baselines():
    for seed in range(100):
        table = random_table(seed)
        if brute_force(table.frame, table.n_layers) is None:
            continue
        winner, full = (search(table, cells_of(table), rule=Rule(), mode=mode) for mode in ("winner", "map"))
        n, cells = table.n_prompts, len(table.frame)
        assert winner.pf_used + full.pf_used == n * (len(table.asked) + 4)
        assert full.pf_used == n * (2 + 3 * cells)
        assert winner.pf_used <= full.pf_used
        assert full.pf_naive == naive_cost(n, cells) == 3 * n * (1 + cells)


def test_winner_asks_for_no_late_layer_and_for_kl_only_until_one_passes():
    frame = pd.DataFrame({"layer": [0, 1, 2, 3, 9], "position": -1, "bypass": [-1.0, -5, -4, -3, -9], "induce": 1.0})
    frame["kl"] = [0.0, 0.5, 0.0, 0.0, 0.0]
    table = Table(frame, 10)
    assert search(table, cells_of(table), rule=Rule(), mode="winner").chosen == Cell(2, -1)
    assert not any(cell.layer == 9 for _, cell in table.asked)
    assert [cell.layer for kind, cell in table.asked if kind == "kl"] == [1, 2]


def test_an_empty_set_says_which_filter_removed_how_many_and_the_best_rejected_cell():
    frame = pd.DataFrame({"layer": range(10), "position": -1, "bypass": -np.arange(10.0), "induce": 1.0, "kl": 0.5})
    frame.loc[:2, "induce"] = -1.0
    for mode in ("winner", "map"):
        with pytest.raises(SelectionError) as caught:
            search(Table(frame, 10), cells_of(Table(frame, 10)), rule=Rule(), mode=mode)
        said = str(caught.value)
        assert "No cell of 10" in said
        for part in ("damages 5", "does not induce 3", "late layer 2"):
            assert part in said
        assert ("layer 7" if mode == "winner" else "layer 9") in said  # a map has scored the late layers too
    with pytest.raises(SelectionError, match="Highest induction: layer 3"):
        search(Table(frame, 10), cells_of(Table(frame, 10)), rule=Rule(induce_floor=9.0), mode="winner")


def test_an_unknown_mode_is_refused():
    with pytest.raises(Exception, match="'quick'"):  # the type check of the tests, or the function's own
        search(random_table(0), cells_of(random_table(0)), rule=Rule(), mode="quick")


def test_scorers_are_recognised_by_what_they_do():
    assert isinstance(random_table(0), Scorer)
    assert not isinstance(object(), Scorer)


# --- The oracle: the sweep of Arditi et al. 2024, appendix C.1, on Hugging Face's own model in float64 ---


def naive_directions(model, restricted: list, harmless: list, n_positions: int) -> torch.Tensor:
    """Difference in means of the residual stream entering each layer, one prompt at a time: [layer, pos, d]."""
    means = []
    for rows in (restricted, harmless):
        with torch.no_grad():
            hidden = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states[:-1] for ids in rows]
        means.append(torch.stack([torch.stack([h[0, -n_positions:] for h in layers]) for layers in hidden]).mean(0))
    return means[0] - means[1]


def naive_sweep(model, directions: torch.Tensor, restricted: list, harmless: list, ids: list[int]) -> pd.DataFrame:
    """Every cell on everything, in a loop."""
    base, rows = oracle.last_logits(model, harmless).log_softmax(-1), []
    for layer in range(directions.shape[0]):
        for position in range(-directions.shape[1], 0):
            vector = directions[layer, position]
            if layer == 0:  # the same tokens in every prompt, so no direction: ablating or adding it does nothing
                vector = torch.zeros_like(vector)
                bypass, kl = oracle.margins(oracle.last_logits(model, restricted), ids).mean(), torch.tensor(0.0)
            else:
                with oracle.ablated(model, vector[None]):
                    bypass = oracle.margins(oracle.last_logits(model, restricted), ids).mean()
                    now = oracle.last_logits(model, harmless).log_softmax(-1)
                kl = (base.exp() * (base - now)).sum(-1).mean()
            with oracle.added(model, layer, vector):
                induce = oracle.margins(oracle.last_logits(model, harmless), ids).mean()
            rows.append((layer, position, float(bypass), float(induce), float(kl)))
    return pd.DataFrame(rows, columns=["layer", "position", *KINDS])


def naive_choice(sweep: pd.DataFrame, n_layers: int) -> Cell:
    chosen = brute_force(sweep, n_layers, rounded=math.ceil)  # organisms are short, and cut as printed
    assert chosen is not None
    return chosen


@pytest.fixture(scope="module", params=GUARDED)
def found(request, organism, contrast):
    """One organism, selected in both modes and swept by the oracle, on the same few prompts."""
    model, folder = organism(request.param), ORGANISMS / request.param
    locating, selecting = contrast.locate.sample(24, seed=0), contrast.select.sample(48, seed=0)
    openings = sorted({dialect.refusal.split()[0] for dialect in language().dialects})
    refusal = readout(model, locating, openings=openings)
    candidates = locate.mean_difference(*capture(model, locating))
    plain = oracle.float64_model(folder)
    encoded = {name: model.encode(getattr(part, label).texts) for name, part, label in _parts(locating, selecting)}
    directions = naive_directions(plain, encoded["lr"], encoded["lh"], model.n_positions)
    ids = [model.tokenizer.get_vocab()[opening] for opening in openings]
    sweep = naive_sweep(plain, directions, encoded["sr"], encoded["sh"], ids)
    chosen = {mode: select(model, candidates, selecting, refusal, mode=mode) for mode in ("winner", "map")}
    return SimpleNamespace(
        model=model, candidates=candidates, prompts=selecting, refusal=refusal, sweep=sweep, **chosen
    )


def _parts(locating, selecting):
    labels = (("r", "restricted"), ("h", "harmless"))
    return [(f"{s}{c}", part, label) for s, part in (("l", locating), ("s", selecting)) for c, label in labels]


def test_both_modes_choose_the_oracles_cell(found):
    expected = naive_choice(found.sweep, found.model.n_layers)
    assert found.winner.cell == expected
    assert found.map.cell == expected


def test_every_score_equals_the_oracles(found):
    for choice in (found.winner, found.map):
        both = choice.cells.merge(found.sweep, on=["layer", "position"], suffixes=("", "_oracle"))
        for kind in KINDS:
            known = both[both[kind].notna()]
            np.testing.assert_allclose(known[kind], known[f"{kind}_oracle"], atol=SHARES, rtol=SHARES)
    assert found.map.cells[list(KINDS)].notna().all(axis=None)
    assert found.winner.cells[list(KINDS)].isna().any(axis=None)


def test_the_chosen_candidate_does_remove_refusal_and_the_estimates_say_so(found):
    assert found.winner.baselines["restricted"].value > 0 > found.winner.baselines["harmless"].value
    assert found.winner.estimates["bypass"][found.winner.cell].value < found.winner.baselines["restricted"].value
    assert found.winner.estimates["kl"][found.winner.cell].value < 0.1
    assert found.winner.estimates["kl"][found.winner.cell].n == len(found.prompts.harmless)


def counted_forwards(model):
    """Counts rows through each block; their sum over L is prompt-forwards."""
    rows = []

    def note(_module, args, kwargs):
        rows.append(len(args[0] if args else kwargs["hidden_states"]))

    return rows, [block.register_forward_pre_hook(note, with_kwargs=True) for block in model.bridge.blocks]


@pytest.mark.parametrize("can_resume", [True, False])
@pytest.mark.parametrize("mode", ["winner", "map"])
@pytest.mark.parametrize("words", [1, 2])
def test_prompt_forwards_reported_are_prompt_forwards_run(organism, contrast, mode, can_resume, words):
    """Openings of two words are read behind their prompt in the same forwards."""
    model = dataclasses.replace(organism("guarded-0"), can_resume=can_resume)
    assert organism("guarded-0").can_resume
    prompts = contrast.select.sample(12, seed=1)
    openings = [" ".join(dialect.refusal.split()[:words]) for dialect in language().dialects]
    refusal = readout(model, prompts, openings=openings)
    assert refusal.one_token == (words == 1)
    candidates = locate.mean_difference(*capture(model, prompts))
    rows, handles = counted_forwards(model)
    loose = Rule(kl_limit=1e6, induce_floor=-1e6)  # costs are counted alike whatever survives
    choice = select(model, candidates, prompts, refusal, mode=mode, rule=loose)
    for handle in handles:
        handle.remove()
    assert sum(rows) / model.n_layers == pytest.approx(choice.pf_used)
    assert choice.pf_used < choice.pf_naive
    if mode == "winner" and choice.cells["kl"].notna().sum() == 1:
        assert choice.pf_used <= estimated_cost(model, prompts)


@pytest.mark.parametrize("words", [1, 2])
def test_whole_forwards_and_resumed_ones_score_alike(organism, contrast, words):
    """Two of the prompts called harmless are refused: both leave them out of induction and damage."""
    model, some = organism("guarded-0"), contrast.select.sample(12, seed=1)
    wrong = [dataclasses.replace(row, label="harmless", pair=None) for row in some.restricted[:2]]
    rows = [dataclasses.replace(row, pair=None) for row in (*some.restricted[2:], *some.harmless)]
    prompts = Prompts((*wrong, *rows))
    candidates, cells = (
        locate.mean_difference(*capture(model, prompts)),
        [Cell(2, -1), Cell(0, -2), Cell(3, -5), Cell(2, -4)],
    )
    openings = [" ".join(dialect.refusal.split()[:words]) for dialect in language().dialects]
    refusal = readout(model, prompts, openings=openings)
    resumed, whole = (
        ModelScorer(dataclasses.replace(model, can_resume=flag), candidates, prompts, refusal) for flag in (True, False)
    )
    assert resumed.score("induce", cells) == pytest.approx(whole.score("induce", cells), abs=1e-4)
    assert resumed.harmless.ids == whole.harmless.ids
    assert not {row.id for row in wrong} & set(resumed.harmless.ids)
    assert len(resumed.values["induce"][cells[0]]) == len(resumed.harmless)
    torch.testing.assert_close(resumed.harmless_base, whole.harmless_base, atol=1e-5, rtol=1e-5)


def test_the_baseline_is_measured_before_any_intervention(organism, contrast):
    """Asking for KL first must not measure its base under the ablation."""
    model, prompts = organism("guarded-0"), contrast.select.sample(12, seed=1)
    candidates = locate.mean_difference(*capture(model, prompts))
    refusal = readout(model, prompts, openings=[language().dialects[0].refusal.split()[0]])
    (score,) = ModelScorer(model, candidates, prompts, refusal).score("kl", [Cell(3, -1)])
    assert score > 0


def test_a_cell_without_a_direction_is_an_exact_no_op_and_costs_nothing(found):
    scorer = ModelScorer(found.model, found.candidates, found.prompts, found.refusal)
    cell = Cell(0, -1)
    assert found.candidates.is_empty(*cell)
    assert not found.candidates.is_empty(1, -1)
    assert [scorer.cost(kind, cell) for kind in KINDS] == [0.0, 0.0, 0.0]
    assert scorer.score("kl", [cell]) == [0.0]
    assert scorer.score("bypass", [cell]) == [pytest.approx(found.winner.baselines["restricted"].value, abs=1e-5)]
    assert scorer.score("induce", [cell]) == [pytest.approx(found.winner.baselines["harmless"].value, abs=1e-5)]


def test_near_ties_contain_the_chosen_and_their_shares_are_shares(found):
    for choice in (found.winner, found.map):
        ties = choice.near_ties
        assert ties["chosen"].sum() == 1
        assert tuple(ties.loc[ties["chosen"], ["layer", "position"]].iloc[0]) == choice.cell
        assert 0 < ties["share"].sum() <= 1 + 1e-12
        assert ties["share"].is_monotonic_decreasing
        assert repr(choice).startswith(f"Choice: layer {choice.cell.layer}, position {choice.cell.position}")


def test_near_ties_pass_over_an_invalid_cell(few):
    cells, n = [Cell(0, -1), Cell(1, -1)], len(few.restricted)
    values = {"bypass": torch.tensor([[math.nan] * n, [-1.0] * n]), "induce": torch.ones(2, n), "kl": torch.zeros(2, n)}
    scorer = ModelScorer.__new__(ModelScorer)
    scorer.values = {kind: dict(zip(cells, rows, strict=True)) for kind, rows in values.items()}
    scorer.n_layers, scorer.restricted, scorer.harmless = 10, few.restricted, few.harmless
    frame = pd.DataFrame(cells, columns=["layer", "position"]).assign(reason="kept", chosen=[False, True])
    ties = near_ties(scorer, frame, rule=Rule(), seed=0)
    assert list(ties["share"]) == [1.0]
    assert list(ties["layer"]) == [1]


def test_the_same_seed_gives_the_same_near_ties_and_map_knows_more_than_winner(found):
    again = select(found.model, found.candidates, found.prompts, found.refusal)
    pd.testing.assert_frame_equal(again.near_ties, found.winner.near_ties)
    assert len(found.map.estimates["kl"]) >= len(found.winner.estimates["kl"])


def test_an_organism_that_passes_no_filter_gets_a_diagnosis(found):
    with pytest.raises(SelectionError, match=r"Removed: .*does not induce"):
        select(found.model, found.candidates, found.prompts, found.refusal, rule=Rule(induce_floor=1e6))


def test_candidates_of_another_model_and_one_sided_prompts_are_refused(found):
    wrong = Candidates(found.candidates.vectors[:-1], "a test", (1, 1))
    with pytest.raises(MeasurementError, match="Capture and locate on this model"):
        select(found.model, wrong, found.prompts, found.refusal)
    with pytest.raises(MeasurementError, match="restricted and harmless"):
        select(found.model, found.candidates, found.prompts.restricted, found.refusal)
