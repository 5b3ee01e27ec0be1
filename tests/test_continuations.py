"""Theory: what is read behind a prompt and its packed openings is what plain forwards of prompt and opening say."""

from __future__ import annotations

import dataclasses
import gc
from collections import Counter
from contextlib import nullcontext

import pytest
import torch

from family_models import CASES, DENSE, WIDTH, FamilyCase, written
from refusalscope import ablate, load, refuses
from refusalscope.model import continuations
from refusalscope.model.batching import Batch, forward
from refusalscope.model.continuations import WORTH_SHARING, Tree, packed, read_continuations
from refusalscope.reading import Readout, greedy_replies
from refusalscope.reading.discover import without_longer
from refusalscope.subspace import Subspace

EPS = torch.finfo(torch.float32).eps
OPENINGS = ((7, 9), (7, 11, 13), (7, 11, 15), (21,), (22, 7, 9, 40))


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def model(case, tmp_path_factory):
    yield load(written(case, tmp_path_factory.mktemp("families") / case.model_type))
    gc.collect()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load(written(CASES[0], tmp_path_factory.mktemp("families") / "llama"))


def requests(model, *, shared: int, rows: int = 5) -> list[list[int]]:
    """Rows of different lengths that begin with so many tokens alike and then differ."""
    noise = torch.Generator().manual_seed(shared)
    size = int(model.bridge.cfg.d_vocab)

    def some(n: int) -> list[int]:
        return torch.randint(5, size, (n,), generator=noise).tolist()

    beginning = some(shared)
    return [[*beginning, 5 + row, *some(2 + row)] for row in range(rows)]


def subspaces(model, ranks) -> list[Subspace]:
    noise = torch.Generator().manual_seed(1)
    return [
        Subspace(torch.randn(rank, model.d_model, generator=noise, dtype=torch.float64), 1, -1, "a test")
        for rank in ranks
    ]


def tree_of(model) -> Tree:
    size = int(model.bridge.cfg.d_vocab)
    return Tree.before([tuple(token % size for token in opening) for opening in OPENINGS])


def one_at_a_time(model, rows, tree) -> torch.Tensor:
    """A plain forward, alone in its batch, of every prompt followed by every beginning."""
    made = []
    for row in rows:
        nodes = []
        for path in tree.paths:
            tokens = torch.tensor([[*row, *path]])
            nodes.append(forward(model, Batch(tokens, torch.ones_like(tokens), torch.tensor([0])))[0, -1])
        made.append(torch.stack(nodes))
    return torch.stack(made)


def everything(logits, _rows):
    return logits


def close(found, expected, *, tolerance=3e-4):
    """Relative to the largest logit, as ``packs`` decides: three times what it allows for its own probe."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


# --- the tree ---


def test_a_tree_has_every_beginning_once_parents_first_and_each_sees_its_own_path_only():
    tree = Tree.before(OPENINGS)
    beginnings = {opening[:n] for opening in OPENINGS for n in range(len(opening))}
    assert set(tree.paths) == beginnings
    assert len(tree) == len(beginnings)
    assert all(tree.node[path[:-1]] < tree.node[path] for path in tree.paths if path)
    for i, path in enumerate(tree.paths[1:]):
        for j, other in enumerate(tree.paths[1:]):
            assert bool(tree.sees[i, j]) == (path[: len(other)] == other)
    assert len(Tree.before([(1,), (2,), (3,)])) == 1


# --- every architecture ---


def test_every_architecture_of_the_table_packs(model):
    """A family that does not is read one beginning at a time: its values are tested here all the same."""
    assert isinstance(model.can_pack, bool)
    expected = one_at_a_time(model, rows := requests(model, shared=0), tree_of(model))
    close(read_continuations(model, rows, tree_of(model), everything), expected)


@pytest.mark.parametrize("shared", [0, WORTH_SHARING - 1, WORTH_SHARING + 3])
def test_packed_values_are_those_of_plain_forwards(model, shared):
    rows, tree = requests(model, shared=shared), tree_of(model)
    assert len({len(row) for row in rows}) == len(rows)
    found = read_continuations(model, rows, tree, everything)
    expected = one_at_a_time(model, rows, tree)
    close(found, expected)
    swapped = expected.roll(1, dims=1)  # a positive control: another node's logits are far from it
    assert float((found - swapped).abs().max()) > 30 * 3e-4 * float(expected.abs().max())


@pytest.mark.parametrize("shared", [0, WORTH_SHARING + 3])
def test_several_ablated_at_once_are_each_as_if_alone(model, shared):
    rows, tree, several = requests(model, shared=shared), tree_of(model), subspaces(model, (2, 2, 2))
    with ablate(model, several):
        together = read_continuations(model, rows, tree, everything, copies=3)
    assert together.shape[:2] == (3, len(rows))
    for row, subspace in enumerate(several):
        with ablate(model, subspace):
            close(together[row], one_at_a_time(model, rows, tree))
    plain = one_at_a_time(model, rows, tree)
    assert float((together[0] - plain).abs().max()) > 30 * 3e-4 * float(plain.abs().max())


# --- falling back ---


@pytest.mark.parametrize("ablated", [False, True])
@pytest.mark.parametrize("shared", [0, WORTH_SHARING + 3])
def test_a_model_that_cannot_be_packed_gives_the_same_values(llama, shared, ablated, monkeypatch):
    assert llama.can_pack
    rows, tree, copies = requests(llama, shared=shared), tree_of(llama), 2 if ablated else 1
    block = ablate(llama, subspaces(llama, (1, 1))) if ablated else nullcontext()
    other = dataclasses.replace(llama, can_pack=False)
    with block:
        fast = read_continuations(llama, rows, tree, everything, copies=copies)
        monkeypatch.setattr(continuations, "_packed", None)  # it is not so much as called
        close(read_continuations(other, rows, tree, everything, copies=copies), fast)


def windowed(tmp_path_factory, window: int):
    """A tiny Mistral whose every layer sees so many tokens back."""
    (mistral,) = [case for case in CASES if case.model_type == "mistral"]
    narrow: FamilyCase = dataclasses.replace(mistral, settings={**mistral.settings, "sliding_window": window})
    return load(written(narrow, tmp_path_factory.mktemp("families") / "mistral"))


def test_rows_longer_than_a_sliding_window_are_read_one_beginning_at_a_time(tmp_path_factory, monkeypatch):
    model, tree = windowed(tmp_path_factory, 12), Tree.before([(7, 9), (7, 11, 13)])
    rows = requests(model, shared=WORTH_SHARING + 3)
    assert max(map(len, rows)) > 12
    assert not continuations._fits(model, rows, tree)
    close(read_continuations(model, rows, tree, everything), one_at_a_time(model, rows, tree))
    if model.can_pack:  # a positive control: packed, these rows would be read wrongly
        monkeypatch.setattr(continuations, "_fits", lambda *_: True)
        wrong = read_continuations(model, rows, tree, everything)
        right = one_at_a_time(model, rows, tree)
        assert float((wrong - right).abs().max()) > 30 * 3e-4 * float(right.abs().max())


def test_rows_within_a_sliding_window_are_packed(tmp_path_factory):
    model, tree = windowed(tmp_path_factory, 12), Tree.before([(7, 9), (7, 11, 13)])
    rows = [row[:8] for row in requests(model, shared=0)]
    assert continuations._fits(model, rows, tree)
    close(read_continuations(model, rows, tree, everything), one_at_a_time(model, rows, tree))


def test_a_single_node_without_a_shared_beginning_is_the_plain_forward_bit_for_bit(llama):
    rows = requests(llama, shared=2)
    found = read_continuations(llama, rows, Tree(), everything)
    from refusalscope.model.batching import map_rows

    plain = map_rows(llama, rows, lambda batch: forward(llama, batch))
    assert torch.equal(found, plain)


def test_float64_rows_of_different_lengths_are_read_to_its_precision(tmp_path_factory):
    folder = written(CASES[0], tmp_path_factory.mktemp("families") / "llama")
    wide = load(folder, dtype=torch.float64)
    for shared in (0, WORTH_SHARING + 3):
        rows, tree = requests(wide, shared=shared), tree_of(wide)
        found = read_continuations(wide, rows, tree, everything)
        assert found.dtype == torch.float64
        assert bool(found.isfinite().all())
        close(found, one_at_a_time(wide, rows, tree), tolerance=1e-6)  # rotary angles and softmax stay in float32


# --- what it costs: tokens, not seconds ---


def tokens_run(model, work) -> Counter:
    """How many tokens, padding included, every forward of the first block ran."""
    seen: Counter = Counter()

    def note(_module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        seen["tokens"] += hidden.shape[0] * hidden.shape[1]
        seen["forwards"] += 1

    handle = model.bridge.blocks[0].register_forward_pre_hook(note, with_kwargs=True)
    try:
        work()
    finally:
        handle.remove()
    return seen


def test_a_readout_runs_each_prompt_once_and_a_token_per_node_behind_it(llama):
    length, rows = 48, 16
    noise = torch.Generator().manual_seed(0)
    made = torch.randint(5, 400, (rows, length), generator=noise).tolist()
    tree = Tree.before([(100 + n, 200 + n) for n in range(8)])  # eight openings of two tokens: nine nodes
    assert len(tree) == 9
    plain = tokens_run(llama, lambda: read_continuations(llama, made, Tree(), everything))
    found = tokens_run(llama, lambda: read_continuations(llama, made, tree, everything))
    assert plain["tokens"] == rows * length
    assert found["tokens"] == rows * (length + len(tree) - 1)
    apart = dataclasses.replace(llama, can_pack=False)
    slow = tokens_run(llama, lambda: read_continuations(apart, made, tree, everything))
    assert slow["tokens"] == rows * (length + (len(tree) - 1) * (length + 1))


def test_a_shared_beginning_is_run_once(llama):
    length, rows, shared = 48, 16, 20
    noise = torch.Generator().manual_seed(0)
    first = torch.randint(5, 400, (shared,), generator=noise).tolist()
    rest = torch.randint(5, 400, (rows, length - shared), generator=noise)
    rest[:, 0] = torch.arange(5, 5 + rows)
    made = [[*first, *row] for row in rest.tolist()]
    tree = Tree.before([(100 + n, 200 + n) for n in range(8)])
    found = tokens_run(llama, lambda: read_continuations(llama, made, tree, everything))
    assert found["tokens"] == shared + rows * (length - shared + len(tree) - 1)
    assert found["tokens"] < rows * length, "fewer than plain forwards of whole prompts"


def test_packed_positions_count_from_each_prompts_end_and_padding_is_not_seen(llama):
    tree = Tree.before([(7, 9), (7, 11, 13)])
    tokens, mask = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    made = packed(llama, Batch(tokens, mask, torch.arange(2)), tree)
    assert made.positions.tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    seen = made.mask[:, 0] == 0
    assert seen[0, 4].tolist() == [False, False, True, True, True, False]  # behind "7": the prompt and itself
    assert seen[0, 5].tolist() == [False, False, True, True, True, True]
    assert seen[1, 3].tolist() == [True, True, True, True, False, False]


def test_the_sizes_used_here_are_the_families(model):
    assert model.d_model == WIDTH
    assert model.n_layers == DENSE["num_hidden_layers"]


# --- refusal is what decoding says, on every architecture ---


def test_what_a_readout_calls_refused_begins_so_when_decoded(model, contrast):
    """Openings are beginnings of some of the model's own replies, so that some prompts enter them and some do not."""
    asked = contrast.select.sample(12, seed=0)
    replies = greedy_replies(model, asked, longest=4)
    openings = without_longer(reply[: 1 + n % 3] for n, reply in enumerate(replies) if n % 4 == 0 and len(reply) > 2)
    found = refuses(model, asked, Readout(openings))
    assert found.tolist() == [any(reply[: len(o)] == o for o in openings) for reply in replies]
    assert bool(found.any())
    wrong = tuple((*o[:-1], (o[-1] + 1) % int(model.bridge.cfg.d_vocab)) for o in openings)
    assert refuses(model, asked, Readout(without_longer(wrong))).tolist() != found.tolist()


def test_greedy_replies_are_those_that_hugging_face_generates(model, contrast):
    asked, core = contrast.select.sample(3, seed=1), model.bridge.original_model
    for text, reply in zip(asked.texts, greedy_replies(model, asked, longest=6), strict=True):
        (ids,) = model.encode([text])
        made = core.generate(
            torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=model.tokenizer.eos_token_id
        )
        assert reply == tuple(made[0, len(ids) :].tolist())
