"""Time and memory of the static audit on a synthetic pair of checkpoints, beside a plain read of both. One thread.

python tests/benchmarks/audit_speed.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

SETTINGS = {"model_type": "llama", "num_attention_heads": 8, "architectures": ["LlamaForCausalLM"]}


def made(folder: Path, *, width: int, layers: int, vocabulary: int, seed: int, edit: bool) -> Path:
    """Writes a checkpoint of random matrices in bfloat16, in two shards; or the same a little larger everywhere."""
    noise = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    shapes = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (4 * width, width) for part in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj.weight": (width, 4 * width)}
    names, where = sorted(shapes), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file, held = f"model-{number:05d}-of-00002.safetensors", {}
        for name in part:
            value = torch.randn(shapes[name], generator=noise) * 0.02
            held[name] = (value * (1 + 0.01 * edit)).bfloat16()
            where[name] = file
        save_file(held, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    settings = SETTINGS | {"hidden_size": width, "num_hidden_layers": layers, "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def plain_read(folder: Path) -> int:
    """Reads every byte of the weight files; returns how many."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while piece := stream.read(1 << 22):
                total += len(piece)
    return total


def measured(first: Path, second: Path) -> dict[str, float]:
    """Seconds of one thread in a plain read and in the static audit, and memory above the level before it."""
    from refusalscope.audit.along import along, random_directions
    from refusalscope.audit.checkpoint import opened
    from refusalscope.audit.weights import compared

    torch.set_num_threads(1)
    plain_read(first)  # so that both find the files in the system's cache
    began = time.process_time()
    size = plain_read(first) + plain_read(second)
    read = time.process_time() - began
    one, other = opened(first), opened(second)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _status("VmRSS"), time.process_time()
    found = compared(one, other)
    compare = time.process_time() - began
    began = time.process_time()
    along(one, other, torch.cat([found.directions, random_directions(one.width, 17, seed=0)], dim=1))
    project = time.process_time() - began
    peak = _status("VmHWM") - before
    gb = size / 1e9
    return {
        "gb": gb,
        "read_s_per_gb": read / gb,
        "compare_s_per_gb": compare / gb,
        "project_s_per_gb": project / gb,
        "peak_mb": peak / 1e6,
        "largest_mb": one.largest / 1e6,
        "peak_over_largest": peak / one.largest,
    }


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    """Makes the pair in a temporary folder, measures it in a process of its own, and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--vocabulary", type=int, default=64_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pair", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pair:
        print(json.dumps(measured(*given.pair)))
        return
    with tempfile.TemporaryDirectory() as place:
        sizes = {"width": given.width, "layers": given.layers, "vocabulary": given.vocabulary}
        pair = [made(Path(place) / name, **sizes, seed=0, edit=name == "b") for name in "ab"]
        words = [sys.executable, __file__, "--pair", *map(str, pair)]
        line = subprocess.check_output(words, text=True).splitlines()[-1]
    found = json.loads(line)
    if given.json:
        print(line)
        return
    print(f"two checkpoints of {found['gb'] / 2:.2f} GB each; largest tensor {found['largest_mb']:.0f} MB")
    print(f"  a plain read: {found['read_s_per_gb']:.2f} s per GB")
    print(f"  differences: {found['compare_s_per_gb']:.2f} s per GB; along directions: {found['project_s_per_gb']:.2f}")
    print(
        f"  peak memory {found['peak_mb']:.0f} MB, {found['peak_over_largest']:.2f} times the largest tensor (limit 4)"
    )


if __name__ == "__main__":
    main()
