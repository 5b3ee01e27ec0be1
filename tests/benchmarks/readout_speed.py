"""What a readout of long openings costs beside a plain forward, as a ratio within one run: target at most 1.3.

Eight openings of two tokens behind 48-token prompts, with and without a beginning of 20 tokens that all prompts share;
a random Llama of width 512 and 8 layers, one thread. A test counts the tokens that run (test_continuations); here the
seconds that packing, its mask and its cache cost are in the ratio too.

    python tests/benchmarks/readout_speed.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import refusalscope as rs
from refusalscope.model.batching import forward, map_rows
from refusalscope.model.continuations import Tree, read_continuations
from refusalscope.organisms.tokens import tokenizer

TARGET = 1.3
LENGTH, SHARED, ROWS = 48, 20, 64


def made(folder: Path) -> rs.ChatModel:
    """A random Llama, large enough that arithmetic and not Python is what takes the time."""
    speaker = tokenizer()
    config = LlamaConfig(
        vocab_size=len(speaker),
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        architectures=["LlamaForCausalLM"],
        bos_token_id=None,
        eos_token_id=speaker.eos_token_id,
        pad_token_id=speaker.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    speaker.save_pretrained(folder)
    return rs.load(folder)


def prompts(shared: int) -> list[list[int]]:
    """Rows of one length that share so many tokens and differ in the next."""
    noise = torch.Generator().manual_seed(0)
    beginning = torch.randint(10, 400, (shared,), generator=noise).tolist()
    rest = torch.randint(10, 400, (ROWS, LENGTH - shared), generator=noise)
    rest[:, 0] = torch.arange(10, 10 + ROWS)
    return [[*beginning, *row] for row in rest.tolist()]


def seconds(work: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The least processor time of either, taken in turns: what else runs on the machine meets both."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for which, one in enumerate((work, other)):
            began = time.process_time()
            one()
            best[which] = min(best[which], time.process_time() - began)
    return best[0], best[1]


def main() -> None:
    """Prints a ratio per kind of prompts, and whether it is on target."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repeats", type=int, default=5)
    repeats = arguments.parse_args().repeats
    torch.set_num_threads(1)
    tree = Tree.before([(100 + n, 200 + n) for n in range(8)])
    with tempfile.TemporaryDirectory() as folder:
        model = made(Path(folder) / "random-llama")
        assert model.can_pack
        for shared in (SHARED, 0):
            rows = prompts(shared)
            plain, packed = seconds(
                lambda rows=rows: map_rows(model, rows, lambda batch: forward(model, batch)[:, 0]),
                lambda rows=rows: read_continuations(model, rows, tree, lambda logits, _rows: logits[:, :, 0]),
                repeats,
            )
            ratio, tokens = packed / plain, (shared / ROWS + LENGTH - shared + len(tree) - 1) / LENGTH
            said = f"{shared} shared tokens: {ratio:.2f} of a plain forward ({packed:.2f} s and {plain:.2f} s)"
            print(f"{said}, {tokens:.2f} of its tokens; target {TARGET}: {'met' if ratio <= TARGET else 'missed'}")


if __name__ == "__main__":
    main()
