"""Rooms (DESIGN 5): imports go strictly down, only organisms train, only model knows TransformerLens."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import refusalscope

PACKAGE = Path(refusalscope.__file__).parent
LONGEST_FILE = 450  # STYLE: one idea per file, up to about 450 lines

ROOMS: dict[str, int] = {
    **dict.fromkeys(("errors", "linalg", "stats", "estimate"), 0),
    **dict.fromkeys(("machine", "reprs", "progress"), 0),
    **dict.fromkeys(("projection", "layered", "openings"), 4),
    **dict.fromkeys(("prompts", "activations", "subspace", "lexicon"), 1),
    **dict.fromkeys(("locators", "placebo", "organisms"), 2),
    "model": 3,
    **dict.fromkeys(("capture", "interventions", "receipt", "metrics", "outcomes", "reading"), 4),
    **dict.fromkeys(("rule", "replay", "scoring", "selection", "effect", "truth", "plotting", "canvas", "frames"), 5),
    "bounds": 5,
    **dict.fromkeys(("attack", "optionality", "curves", "transfer", "attribution", "objective", "cosmic"), 5),
    "recovery": 5,
    "footprint": 5,
    **dict.fromkeys(("forecast", "cli_estimate"), 6),
    "diagnosis": 5,
    "monitor": 5,
    **dict.fromkeys(("report", "results", "verdict", "claims", "instrument"), 6),
    "cli_diagnose": 6,
    "cli_errors": 6,
    "audit": 5,
    "published": 6,
    "cli_audit": 6,
    **dict.fromkeys(("crate", "cli_crate", "cli_reproduce"), 6),
    **dict.fromkeys(("figure_sheet", "figure_check", "cli_figures"), 6),
    **dict.fromkeys(
        ("figures", "figure_record", "reproduce", "cli", "cli_options", "cli_organisms", "cli_families", "__main__"), 6
    ),
}
STRANGERS = {frozenset({"interventions", "metrics"})}


def imported(source: str) -> set[str]:
    """Every module a source imports, wherever in it the import stands, as absolute dotted names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def faults(module: str, source: str) -> list[str]:
    """What is wrong with a module's imports, given its dotted name below the package."""
    home = module.split(".")[0]
    if home not in ROOMS:
        return [f"{module} has no room: add it to ROOMS and to DESIGN 5"]
    names, found = imported(source), []
    if home != "model" and any(name.split(".")[0] == "transformer_lens" for name in names):
        found.append(f"{module} imports transformer_lens; only model does")
    neighbours = {name.split(".")[1] for name in names if name.startswith("refusalscope.")} - {home}
    if "refusalscope" in names and not neighbours:
        found.append(f"{module} imports the whole package")
    for other in sorted(neighbours):
        if other not in ROOMS:
            found.append(f"{module} imports {other}, which has no room")
        elif ROOMS[other] > ROOMS[home]:
            found.append(f"{module} (room {ROOMS[home]}) imports {other} (room {ROOMS[other]})")
        elif ROOMS[other] == ROOMS[home] and (ROOMS[home] == 2 or frozenset({home, other}) in STRANGERS):
            found.append(f"{module} imports its neighbour {other}")
    return found


def trains(source: str) -> bool:
    """Whether a source takes gradient steps."""
    tree = ast.parse(source)
    calls = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return bool(calls & {"backward", "optim", "zero_grad"}) or any("torch.optim" in name for name in imported(source))


def modules() -> dict[str, Path]:
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]
    return {".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@pytest.mark.parametrize("module", modules())
def test_every_module_has_a_room_and_imports_strictly_down(module):
    assert faults(module, modules()[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", modules())
def test_only_organisms_train(module):
    assert module.startswith("organisms.") or not trains(modules()[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", modules())
def test_files_are_short(module):
    lines = len(modules()[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{module} has {lines} lines: one idea per file"


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("stats", "from refusalscope.subspace import Subspace", "room 0"),
        ("placebo", "from refusalscope.organisms.recipe import Recipe", "neighbour organisms"),
        ("locators.new", "import transformer_lens.tools", "transformer_lens"),
        ("locators.new", "def f():\n    from refusalscope.model.chat import ChatModel", "room 3"),
        ("metrics", "from refusalscope import interventions", "neighbour interventions"),
        ("interventions", "from refusalscope.metrics import margin", "neighbour metrics"),
        ("capture", "import refusalscope as rs", "whole package"),
        ("capture", "from refusalscope.unheard import x", "no room"),
        ("utils", "import math", "no room"),
        ("effect", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from refusalscope import cli", "room 6"),
    ],
)
def test_a_bad_import_is_caught(module, source, said):
    found = faults(module, source)
    assert len(found) == 1
    assert said in found[0]


def test_a_good_import_is_not_caught():
    assert faults("effect", "from refusalscope import stats\nfrom refusalscope.metrics import kl") == []
    assert faults("model.chat", "from transformer_lens.model_bridge import TransformerBridge") == []


def test_training_is_recognised():
    assert trains("loss.backward()")
    assert trains("from torch.optim import AdamW")
    assert not trains("def forward(x):\n    return x")
    assert trains((PACKAGE / "organisms" / "training.py").read_text(encoding="utf-8"))
