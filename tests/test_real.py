"""A real chat model end to end, beside an oracle in plain transformers: `make test-real`.

SmolLM2-135M-Instruct as a GGUF file (tests/fetch_real.py). The unintervened model's replies are read in memory; none is
printed or stored.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest
import torch

import refusalscope as rs
from fetch_real import NAME
from refusalscope.prompts import Prompts
from refusalscope.reading.replies import greedy_replies

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("REFUSALSCOPE_REAL", ROOT / "build" / "real"))
CLUSTERS, TOLERANCE, SECONDS = 6, 1e-3, 240


@pytest.fixture(scope="module")
def file() -> Path:
    if not (FOLDER / NAME).is_file():
        pytest.skip(f"{NAME} is not in {FOLDER.name}: `make test-real` fetches it")
    return FOLDER / NAME


@pytest.fixture(scope="module")
def oracle(file):
    """The model and its tokenizer in plain transformers: no TransformerLens anywhere."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        yield model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@pytest.fixture(scope="module")
def model(file):
    return rs.load(file)


@pytest.fixture(scope="module")
def prompts() -> rs.ContrastSet:
    every = rs.ContrastSet.read(ROOT / "data" / "prompts" / "everyday.jsonl")
    rows = [row for part in (every.locate, every.select, every.report) for row in _few(part)]
    return rs.ContrastSet(Prompts(tuple(rows)), every.source, "a few clusters of each split")


@pytest.fixture(scope="module")
def readout(model, prompts) -> rs.Readout:
    return rs.readout(model, prompts.locate, openings=["I'm sorry, but", "As an AI", "I can't"], compliances=["Sure"])


def test_margins_and_greedy_decisions_are_those_of_plain_transformers(model, oracle, prompts, readout):
    asked = prompts.report[:12]
    found = rs.margin(model, asked, readout)
    refused = rs.refuses(model, asked, readout)
    for row, prompt in enumerate(asked):
        probability, greedy = _by_hand(*oracle, prompt.text, readout.refusals)
        expected = math.log(probability) - math.log1p(-probability)
        assert float(found[row]) == pytest.approx(expected, abs=TOLERANCE)
        assert bool(refused[row]) == greedy


def test_a_margin_of_another_prompt_is_noticed(model, oracle, prompts, readout):
    first, second = prompts.report[0], prompts.report[1]
    probability, _ = _by_hand(*oracle, first.text, readout.refusals)
    found = rs.margin(model, Prompts((second,)), readout)
    assert abs(float(found[0]) - (math.log(probability) - math.log1p(-probability))) > TOLERANCE


def test_replies_are_those_that_transformers_generates(model, oracle, prompts):
    other, tokenizer = oracle
    asked = prompts.report[:4]
    said = greedy_replies(model, asked, longest=12)
    for prompt, reply in zip(asked, said, strict=True):
        ids = _rendered(tokenizer, prompt.text)
        made = other.generate(ids, max_new_tokens=12, do_sample=False, use_cache=True)[0, ids.shape[1] :].tolist()
        assert list(reply) == made[: len(reply)], "replies differ"  # the texts themselves are not shown


def test_one_verdict_with_its_reading_and_its_reasons(model, prompts):
    began = time.perf_counter()
    card = rs.measure(model, prompts, budget=SECONDS, progress=False)
    assert time.perf_counter() - began < 1.1 * SECONDS
    assert card.plan in ("budget", "full")
    assert card.readout is not None
    assert card.readout.phrases
    assert card.validity is not None
    assert card.verdict.reasons
    if card.validity.plain.kappa.value is None or card.validity.plain.kappa.value < 0.8:
        assert card.verdict.state == "undetermined"
        assert any("readout validity" in reason for reason in card.verdict.reasons)
    assert "left out" in " ".join(card.missing)


def _few(part: Prompts) -> list:
    names = list(dict.fromkeys(part.clusters))
    kept = set(names[:: max(1, len(names) // CLUSTERS)][:CLUSTERS])
    return [row for row in part if row.cluster in kept]


def _rendered(tokenizer, text: str) -> torch.Tensor:
    chat = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return torch.tensor([tokenizer(rendered, add_special_tokens=False).input_ids])


def _by_hand(model, tokenizer, text: str, openings) -> tuple[float, bool]:
    """p_O by enumeration, one plain forward per opening, and whether the greedy path enters one of them."""
    ids, total, greedy = _rendered(tokenizer, text), 0.0, False
    for opening in openings:
        whole = torch.cat([ids, torch.tensor([opening])], dim=1)
        logits = model(whole).logits[0, ids.shape[1] - 1 : -1].double()
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(opening)[:, None])
        total += math.exp(float(chosen.sum()))
        greedy = greedy or logits.argmax(-1).tolist() == list(opening)
    return total, greedy
