"""Speed of selection against a naive sweep, as ratios within one run; and peak memory against prompt length.

The naive sweep is the tests' oracle: Hugging Face's own model in float64 under torch hooks, one candidate at a time,
three scores per cell. The same sweep in float32 runs beside it: that part of the ratio owes nothing to precision.

    make bench
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import oracle
import refusalscope as rs

ROOT = Path(__file__).parents[2]
VOCABULARY = 150_000


def sweep(model, candidates, rows: tuple[list, list], ids) -> pd.DataFrame:
    """Scores every cell on everything, one at a time, as the reference implementation does."""
    restricted, harmless = rows
    oracle.margins(oracle.last_logits(model, restricted), ids).mean()
    oracle.margins(oracle.last_logits(model, harmless), ids).mean()
    base, table = oracle.last_logits(model, harmless).double().log_softmax(-1), []
    dtype = next(model.parameters()).dtype
    for layer, position in candidates.cells():
        vector = candidates.at(layer, position).vectors[0]
        scores = {"bypass": float("nan"), "kl": 0.0}
        if not candidates.is_empty(layer, position):
            with cut(model, vector.to(dtype)):
                scores["bypass"] = float(oracle.margins(oracle.last_logits(model, restricted), ids).mean())
                now = oracle.last_logits(model, harmless).double().log_softmax(-1)
                scores["kl"] = float((base.exp() * (base - now)).sum(-1).mean())
        else:
            scores["bypass"] = float(oracle.margins(oracle.last_logits(model, restricted), ids).mean())
            oracle.last_logits(model, harmless)
        with push(model, layer, vector.to(dtype)):
            scores["induce"] = float(oracle.margins(oracle.last_logits(model, harmless), ids).mean())
        table.append({"layer": layer, "position": position, **scores})
    return pd.DataFrame(table)


class cut:
    """Projects a direction out of every write, in the model's own precision."""

    def __init__(self, model, vector):
        unit = vector / vector.norm()
        self.model, self.edit = model, lambda x: x - (x @ unit)[..., None] * unit

    def __enter__(self):
        def written(_module, _inputs, out):
            return (self.edit(out[0]), *out[1:]) if isinstance(out, tuple) else self.edit(out)

        layers = self.model.model.layers
        self.handles = [layers[0].register_forward_pre_hook(lambda _m, inputs: (self.edit(inputs[0]), *inputs[1:]))]
        self.handles += [part.register_forward_hook(written) for x in layers for part in (x.self_attn, x.mlp)]

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


class push:
    """Adds a vector where the stream enters a layer, in the model's own precision."""

    def __init__(self, model, layer, vector):
        self.block, self.vector = model.model.layers[layer], vector

    def __enter__(self):
        self.handle = self.block.register_forward_pre_hook(lambda _m, inputs: (inputs[0] + self.vector, *inputs[1:]))

    def __exit__(self, *_):
        self.handle.remove()


def speed(name: str, repeats: int) -> None:
    """Prints seconds and ratios of both modes against the naive sweep, and how far the scores are apart."""
    folder, prompts = (
        ROOT / "data" / "organisms" / name,
        rs.ContrastSet.read(ROOT / "data" / "prompts" / "organism.jsonl"),
    )
    model = rs.load(folder)
    refusal = rs.readout(model, prompts.locate)
    found = rs.locate.mean_difference(*rs.capture(model, prompts.locate))
    rows = tuple(model.encode(split.texts) for split in (prompts.select.restricted, prompts.select.harmless))
    exact = oracle.float64_model(folder)
    single = oracle.float64_model(folder).float()
    seconds: dict[str, list[float]] = {"float64": [], "float32": [], "winner": [], "map": []}
    for _ in range(repeats):
        for precision, naive in (("float32", single), ("float64", exact)):
            began = time.perf_counter()
            truth = sweep(naive, found, rows, refusal.ids)
            seconds[precision].append(time.perf_counter() - began)
        choices = {mode: rs.select(model, found, prompts.select, refusal, mode=mode) for mode in ("winner", "map")}
        for mode, choice in choices.items():
            seconds[mode].append(choice.seconds)
    best = truth[(truth["induce"] > 0) & (truth["kl"] < 0.1) & (truth["layer"] < 0.8 * model.n_layers)]
    cell = tuple(best.sort_values("bypass").iloc[0][["layer", "position"]].astype(int))
    middle = {mode: float(np.median(times)) for mode, times in seconds.items()}
    print(
        f"{name}: {len(truth)} cells, {len(rows[0])} + {len(rows[1])} prompts, "
        f"{torch.get_num_threads()} threads, median of {repeats}\n"
        f"  naive sweep {middle['float64']:.2f} s in float64, {middle['float32']:.2f} s in float32"
    )
    for mode, choice in choices.items():
        known = choice.cells.merge(truth, on=["layer", "position"], suffixes=("", "_exact"))
        gap = max(np.nanmax(np.abs(known[kind] - known[f"{kind}_exact"])) for kind in ("bypass", "induce", "kl"))
        verdict = "same cell" if tuple(choice.cell) == cell else f"OTHER CELL {tuple(choice.cell)} than {cell}"
        faster, alike = (middle[precision] / middle[mode] for precision in ("float64", "float32"))
        print(
            f"  {mode:<7}{middle[mode]:6.2f} s, {faster:.1f} times faster ({alike:.1f} in float32); "
            f"{verdict}; largest difference of a score {gap:.1e}; PF {choice.pf_used:,.0f} of {choice.pf_naive:,.0f}"
        )


def memory() -> None:
    """Prints peak memory of scoring on a random model with a vocabulary of 150k, prompts short and twice as long."""
    peaks = {
        words: int(subprocess.check_output([sys.executable, __file__, "--peak", str(words)])) for words in (200, 400)
    }
    print(
        f"peak memory, vocabulary {VOCABULARY:,}: "
        + ", ".join(f"{words} words {kb / 1024:.0f} MB" for words, kb in peaks.items())
    )
    print(
        f"  ratio {peaks[400] / peaks[200]:.2f} "
        f"(logits of every position would add {200 * 16 * VOCABULARY * 4 / 2**20:.0f} MB)"
    )


def peak(words: int) -> None:
    """Prints the peak resident kilobytes of scoring prompts of about that many words."""
    import tempfile

    from transformers import AutoConfig, AutoModelForCausalLM

    from refusalscope.organisms.tokens import tokenizer
    from refusalscope.scoring import ModelScorer

    made = tokenizer()
    config = AutoConfig.for_model(
        "qwen3", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=1024, tie_word_embeddings=True,
        pad_token_id=made.pad_token_id, eos_token_id=made.eos_token_id,
        bos_token_id=None,
        architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        made.save_pretrained(folder)
        model = rs.load(folder)
    from dataclasses import replace

    model = replace(model, batch_size=16)
    filler = " ".join(rs.language().words[8 : 8 + 50])
    rows = [
        {"id": f"{label}{i}", "label": label, "category": "c", "cluster": f"t{i}", "split": "select",
         "text": f"{label} {i} " + " ".join(((filler + " ") * 10).split()[:words]), "pair": None}
        for label in ("restricted", "harmless") for i in range(16)
    ]  # fmt: skip
    prompts = rs.Prompts(tuple(rs.Prompt(**row) for row in rows))
    acts = rs.capture(model, prompts)
    tokens = rs.Readout(((20,),), phrases=("x",), n=16)
    scorer = ModelScorer(model, rs.locate.mean_difference(*acts), prompts, tokens)
    from refusalscope.rule import Cell

    for kind in ("bypass", "induce", "kl"):
        scorer.score(kind, [Cell(3, -1), Cell(4, -1)])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--organism", default="guarded-0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    peak(chosen.peak) if chosen.peak else (speed(chosen.organism, chosen.repeats), memory())
