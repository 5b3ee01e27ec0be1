"""Speed and memory of selection on random weights in the shapes of chat models of 0.5B, 1.5B and 8B parameters.

Weights are drawn in memory from a configuration; nothing is downloaded, and nothing is written. On a GPU every shape is
measured in bfloat16, on a CPU the smallest in float32. A selection's whole grid would take hours on a CPU, so few cells
and prompts are scored: rates do not depend on how many. Every cell counts as surviving, so that the cost is known.

    make bench-shapes
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from selection_speed import cut, push

import refusalscope as rs
from refusalscope.footprint import flops_per_prompt, memory, size_of
from refusalscope.machine import measured_machine
from refusalscope.model import load
from refusalscope.organisms.tokens import tokenizer
from refusalscope.reading.readout import log_odds
from refusalscope.rule import Cell, Rule, search
from refusalscope.scoring import ModelScorer

EVERYTHING = Rule(kl_limit=float("inf"), induce_floor=-float("inf"))
SHAPES = {
    "tiny": ("qwen2", "Qwen2ForCausalLM", {
        "vocab_size": 20_000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }),
    "0.5B": ("qwen2", "Qwen2ForCausalLM", {
        "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }),
    "1.5B": ("qwen2", "Qwen2ForCausalLM", {
        "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }),
    "8B": ("llama", "LlamaForCausalLM", {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    }),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """How much of a selection is measured."""

    prompts: int
    layers: int
    words: int
    batch: int
    naive_cells: int


@dataclass(frozen=True)
class Speed:
    """What one shape reached. Bytes are those above the level before the weights were drawn."""

    shape: str
    parameters: int
    device: str
    dtype: str
    tokens_per_prompt: float
    cells: int
    pf: float
    seconds: float
    tokens_per_second: float
    share_of_peak: float
    naive_seconds_per_pf: float
    times_faster_per_cell: float
    peak_bytes: int
    predicted_bytes: float


def drawn(shape: str, *, device: str, dtype: torch.dtype):
    """A module with random weights in a shape."""
    kind, architecture, settings = SHAPES[shape]
    made = tokenizer()
    special = {"pad_token_id": made.pad_token_id, "eos_token_id": made.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(
        kind, architectures=[architecture], max_position_embeddings=2048, **special, **settings
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()


def requests(asked: Asked) -> rs.Prompts:
    """Prompts of about so many words."""
    words = rs.language().words[8:]
    rows = [
        rs.Prompt(f"{label}{n}", label, "c", f"t{n}", "select", " ".join(words[n : n + asked.words]), None)
        for label in ("restricted", "harmless")
        for n in range(asked.prompts)
    ]
    return rs.Prompts(tuple(rows))


def measured(shape: str, asked: Asked, *, device: str) -> Speed:
    """Returns the speed of selection in a shape, beside a naive sweep of the same cells on the untouched module."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rates, before = [best_rate(device, dtype)], used(device)
    module = drawn(shape, device=device, dtype=dtype)
    restart(device)
    prompts, made = requests(asked), tokenizer()
    lists = made(list(prompts.texts), add_special_tokens=False).input_ids
    naive = naively(module, [lists[: asked.prompts], lists[asked.prompts :]], asked)
    model = replace(load(module, tokenizer=made, name=shape), batch_size=asked.batch)
    vectors = torch.randn(model.n_layers, model.n_positions, 1, model.d_model, dtype=torch.float64)
    candidates = rs.Candidates(vectors, "random", (1, 1))
    every = range(0, int(0.8 * model.n_layers), max(1, int(0.8 * model.n_layers) // asked.layers))
    cells = [Cell(layer, position) for layer in list(every)[: asked.layers] for position in model.positions]
    restart(device)
    scorer = ModelScorer(model, candidates, prompts, rs.Readout(((20,),), phrases=("x",), n=asked.prompts))
    began = time.perf_counter()
    found = search(scorer, cells, rule=EVERYTHING, mode="winner")
    scorer.restricted_margin.mean()  # the baseline select reports, and the search counts
    finish(device)
    seconds = time.perf_counter() - began
    reached = peak(device) - before
    rates.append(best_rate(device, dtype))  # again, as a busy machine has better and worse moments
    lengths = [len(ids) for ids in model.encode(prompts.texts)]
    tokens, size = sum(lengths) / len(lengths), size_of(model)
    return Speed(
        shape=shape,
        parameters=size.parameters,
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        tokens_per_prompt=tokens,
        cells=len(cells),
        pf=found.pf_used,
        seconds=seconds,
        tokens_per_second=found.pf_used * tokens / seconds,
        share_of_peak=found.pf_used * flops_per_prompt(size, tokens) / seconds / max(rates),
        naive_seconds_per_pf=naive,
        times_faster_per_cell=naive * 3 * asked.prompts / (seconds / len(cells)),
        peak_bytes=reached,
        predicted_bytes=memory(model, tokens=max(lengths), harmless=asked.prompts).total,
    )


def naively(module, rows: list[list[list[int]]], asked: Asked) -> float:
    """Returns the seconds of a prompt-forward in a naive sweep: one candidate at a time, whole forwards, all logits."""
    vector = torch.randn(module.config.hidden_size, device=module.device).to(module.dtype)
    restricted, harmless = (torch.tensor(part, device=module.device) for part in rows)
    began, edits = (
        time.perf_counter(),
        (cut(module, vector), push(module, module.config.num_hidden_layers // 2, vector)),
    )
    for _ in range(asked.naive_cells):
        with edits[0]:
            log_odds(last_logits(module, restricted), (20,)).mean()
            last_logits(module, harmless).log_softmax(-1)
        with edits[1]:
            log_odds(last_logits(module, harmless), (20,)).mean()
    finish(module.device.type)
    return (time.perf_counter() - began) / (3 * asked.prompts * asked.naive_cells)


@torch.no_grad()
def last_logits(module, tokens):
    """Logits at the last position, in float32."""
    return module(tokens).logits[:, -1].float()


def best_rate(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the best of several sizes and moments."""
    sizes = (4096, 8192) if device == "cuda" else (768, 1024, 1024, 1024, 1536)
    return max(measured_machine(device=device, dtype=dtype, size=size).flops_per_second for size in sizes)


def used(device: str) -> int:
    """Bytes in use: on the device, or resident."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def restart(device: str) -> None:
    """Forgets the peak so far."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int:
    """Bytes in use at most since the peak was forgotten."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def finish(device: str) -> None:
    """Waits until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def told(speed: Speed) -> str:
    """One shape in words."""
    return (
        f"{speed.shape}: {speed.parameters / 1e9:.2f}B parameters, {speed.dtype} on {speed.device}; "
        f"{speed.cells} cells, {speed.pf:,.0f} prompt-forwards of {speed.tokens_per_prompt:.0f} tokens "
        f"in {speed.seconds:.1f} s\n"
        f"  {speed.tokens_per_second:,.0f} tokens per second, {speed.share_of_peak:.0%} of a matrix product's speed\n"
        f"  a naive sweep takes {speed.naive_seconds_per_pf * 1e3:.0f} ms per prompt-forward: selection is "
        f"{speed.times_faster_per_cell:.1f} times faster per cell\n"
        f"  peak memory {speed.peak_bytes / 1e9:.2f} GB, predicted {speed.predicted_bytes / 1e9:.2f} GB"
    )


def main() -> None:
    """Measures every shape in a process of its own, so that peaks do not mix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a shape of seconds, to see that the script runs")
    parser.add_argument("--shape", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=int, help="prompts of each label")
    parser.add_argument("--layers", type=int, help="layers whose cells are scored")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    large = device == "cuda"
    asked = Asked(given.prompts or (32 if large else 4), given.layers or (8 if large else 2), 33, 64, 4 if large else 1)
    if given.shape:
        print(json.dumps(asdict(measured(given.shape, asked, device=device))))
        return
    shapes = ["tiny"] if given.tiny else [shape for shape in SHAPES if shape != "tiny"] if large else ["0.5B"]
    for shape in shapes:
        words = [
            sys.executable,
            __file__,
            "--shape",
            shape,
            "--prompts",
            str(asked.prompts),
            "--layers",
            str(asked.layers),
        ]
        line = subprocess.check_output(words, text=True).splitlines()[-1]
        print(line if given.json else told(Speed(**json.loads(line))))


if __name__ == "__main__":
    main()
