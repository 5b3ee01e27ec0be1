"""Shared fixtures: a tiny organism-like model. Every signature in refusalscope is checked while the tests run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("refusalscope", "beartype.beartype")  # before anything imports refusalscope
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory):
    """A function from a model type and settings to a saved model directory with random weights and our tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from refusalscope.organisms.tokens import tokenizer

    def make(model_type: str, architecture: str, **settings) -> Path:
        made, directory = tokenizer(), tmp_path_factory.mktemp("models") / f"tiny-{model_type}"
        shared = {"vocab_size": len(made), "pad_token_id": made.pad_token_id, "eos_token_id": made.eos_token_id}
        config = AutoConfig.for_model(
            model_type, architectures=[architecture], bos_token_id=None, **{**shared, **settings}
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        made.save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def tiny_dir(make_tiny) -> Path:
    """A three-layer Qwen 3 with random weights that speaks the fictional language."""
    return make_tiny(
        "qwen3",
        "Qwen3ForCausalLM",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,  # so that prompts differ in their most likely token
    )


@pytest.fixture(scope="session")
def tiny(tiny_dir):
    """That directory loaded. Shared by all tests: register hooks only inside a with block."""
    from refusalscope.model import load

    return load(tiny_dir)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Twenty requests of different lengths."""
    from refusalscope.organisms.language import language

    questions = language().questions("how-to")
    return [question.text for question in questions[:: max(1, len(questions) // 20)]][:20]


@pytest.fixture(scope="session")
def contrast():
    """The organisms' contrast set, made from the language itself."""
    from refusalscope.organisms.prompt_set import contrast_rows
    from refusalscope.prompts import ContrastSet

    return ContrastSet.from_rows(contrast_rows())


@pytest.fixture(scope="session")
def few(contrast):
    """Six prompts of each label."""
    return contrast.select.sample(6, seed=0)


@pytest.fixture(scope="session")
def before(tiny, few):
    """A baseline with something to lose: R is whatever an untrained model says more often to restricted prompts.

    Some restricted prompts are refused and some harmless ones answered, by the most likely token.
    """
    from refusalscope.effect import baseline
    from refusalscope.metrics import next_token
    from refusalscope.reading import Readout

    restricted, harmless = (next_token(tiny, part).exp().mean(0) for part in (few.restricted, few.harmless))
    ids = tuple((restricted - harmless).argsort(descending=True)[: int(0.7 * len(restricted))].tolist())
    found = baseline(tiny, few, Readout(tuple((one,) for one in ids), phrases=("many",), n=len(few.restricted)))
    assert found.gap > 0
    assert bool(found.refused.any())
    assert bool(found.answered.any())
    return found


@pytest.fixture(scope="session")
def tiny_readout(tiny, few):
    """Three tokens to count as refusal in a model that has learned nothing."""
    from refusalscope.organisms.language import language
    from refusalscope.reading import readout

    return readout(tiny, few, openings=[dialect.refusal.split()[0] for dialect in language().dialects])


@pytest.fixture
def direction(tiny):
    """A function from (rank, layer, seed) to a random subspace of the tiny model."""
    from refusalscope.subspace import Subspace

    def draw(rank: int = 1, layer: int | None = 1, seed: int = 0, width: int = tiny.d_model) -> Subspace:
        noise = torch.Generator().manual_seed(seed)
        return Subspace(torch.randn(rank, width, generator=noise, dtype=torch.float64), layer, -1, "a test")

    return draw


ORGANISMS = Path(__file__).parents[1] / "data" / "organisms"


@pytest.fixture(scope="session")
def organism():
    """A function from a reference organism's name to its loaded model; each is loaded once."""
    from functools import cache

    from refusalscope.model import load

    return cache(lambda name: load(ORGANISMS / name))


@pytest.fixture(scope="session")
def guarded(organism):
    """The shipped organism guarded-0. Shared by all tests: register hooks only inside a with block."""
    return organism("guarded-0")


@pytest.fixture(scope="session")
def prompts():
    """Of the shipped contrast set, sixteen prompts per label and split, from eight clusters: quick to measure."""
    from refusalscope.prompts import ContrastSet, Prompts

    shipped = ContrastSet.read(Path(__file__).parents[1] / "data" / "prompts" / "organism.jsonl")
    splits = (shipped.locate, shipped.select, shipped.report)
    few = tuple(row for split in splits for label in (split.restricted, split.harmless) for row in _spread(label, 16))
    return ContrastSet(Prompts(few), source="few.jsonl")


def _spread(prompts, n: int) -> list:
    """n prompts, as many from each cluster."""
    clusters = sorted(set(prompts.clusters))
    return [row for cluster in clusters for row in prompts.where(cluster=cluster)[: n // len(clusters)]]
