"""nbval as a user types it: `pytest --nbval notebooks/` and `--nbval-lax`, from a checkout, without another option."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from refusalscope.figure_check import check
from refusalscope.figures import FOLDER_VARIABLE, save

ROOT = Path(__file__).parents[1]
MAKE = ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")
SHOWN = """class Claim:
    __repr__ = lambda _: '{claim}'
    _repr_html_ = lambda _: '{digits}'
Claim()"""
SET = f"import os\nlist(map(os.environ.get, {MAKE}))"
SAVED = """import pandas as pd
from matplotlib.figure import Figure
from refusalscope.figures import save
save(Figure(), "margins", data=pd.DataFrame({"margin": [1.0]}), claim="it holds", notebook="saving")"""

# Notebook: what its cell says, what is stored of it.
CELLS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "held": (SET, {"text/plain": ["['1', '1', 'false']"]}),
    "digits": (SHOWN.format(claim="it holds", digits="2.72"), {"text/plain": ["it holds"], "text/html": ["3.14"]}),
    "claim": (SHOWN.format(claim="it holds", digits="3.14"), {"text/plain": ["it fails"], "text/html": ["3.14"]}),
    "broken": (SHOWN.format(claim="DOES NOT HOLD: x", digits="1"), {"text/plain": ["DOES NOT HOLD: x"]}),
    "failing": ("1 / 0", {"text/plain": ["0"]}),
    "saving": (SAVED, {"text/plain": ["figure margins saved: it holds"]}),
}


def write(folder: Path, name: str) -> None:
    source, data = CELLS[name]
    result = {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": data}
    cell = {"cell_type": "code", "execution_count": 1, "metadata": {}, "outputs": [result]}
    kernel = {"kernelspec": {"name": "kernel-of-someone-else", "display_name": "x", "language": "python"}}
    book = {"cells": [cell | {"source": source.splitlines(keepends=True)}], "metadata": kernel}
    (folder / f"{name}.ipynb").write_text(json.dumps(book | {"nbformat": 4, "nbformat_minor": 4}))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Six notebooks under this repository's settings, and the record of a figure whose number has drifted since."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("notebooks", "figures", "tests"):
        (root / name).mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copy(ROOT / "notebooks" / "conftest.py", root / "notebooks")
    for name in CELLS:
        write(root / "notebooks", name)
    frame = pd.DataFrame({"margin": [2.0]})
    save(Figure(), "margins", data=frame, claim="it holds", notebook="saving", folder=root / "figures")
    return root


def typed(checkout: Path, *words: str) -> tuple[int, dict[str, str], str]:
    """The exit code of pytest, what became of each notebook, and all that was said."""
    place = {key: value for key, value in os.environ.items() if key not in (*MAKE, FOLDER_VARIABLE)}
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *words]
    asked = {"cwd": checkout, "env": place | {"TMPDIR": str(checkout)}, "capture_output": True, "text": True}
    run = subprocess.run(command, timeout=300, check=False, **asked)
    found = re.findall(r"^(PASSED|FAILED) notebooks/(\w+)\.ipynb::", run.stdout, re.M)
    return run.returncode, {name: state for state, name in found}, run.stdout + run.stderr


TWO_AT_ONCE = ("-n", "2", "--dist", "loadfile")


@pytest.mark.parametrize(
    ("options", "red"),
    [
        (("--nbval",), {"claim", "broken", "failing"}),
        (("--nbval-lax",), {"broken", "failing"}),
        (("--nbval", *TWO_AT_ONCE), {"claim", "broken", "failing"}),
    ],
)
def test_a_flipped_claim_turns_nbval_red_digits_in_html_do_not_and_a_drifted_record_is_named(checkout, options, red):
    code, states, said = typed(checkout, *options, "notebooks/")
    assert states == {name: "FAILED" if name in red else "PASSED" for name in CELLS}, said
    assert "margins: data: row 0, margin: 2.0 became 1.0" in said
    assert "DOES NOT HOLD: x" in said
    assert code == 1


@pytest.mark.parametrize(("option", "name", "code"), [("--nbval", "held", 0), ("--nbval-lax", "saving", 1)])
def test_one_notebook_alone_passes_and_a_drifted_record_alone_fails_lax_too(checkout, option, name, code):
    found, states, said = typed(checkout, option, f"notebooks/{name}.ipynb")
    assert (found, states) == (code, {name: "PASSED"}), said


def test_with_notebooks_in_two_processes_nothing_drifts_that_held_and_a_drifted_record_alone_fails(checkout):
    books = [f"notebooks/{name}.ipynb" for name in ("held", "saving")]
    code, states, said = typed(checkout, "--nbval-lax", *TWO_AT_ONCE, *books)
    assert (code, set(states.values()), said.count("became"), said.count("did not save it")) == (1, {"PASSED"}, 1, 0), (
        said
    )
    assert typed(checkout, "--nbval", *TWO_AT_ONCE, books[0])[0] == 0


def test_a_named_kernel_is_used_rather_than_the_one_pytest_runs_in(checkout):
    code, states, said = typed(checkout, "--nbval", "--nbval-kernel-name", "no-such-kernel", "notebooks/held.ipynb")
    assert code != 0
    assert "PASSED" not in states.values()
    assert "no-such-kernel" in said


def test_a_flipped_digit_in_any_record_of_this_repository_turns_the_check_of_figures_red(tmp_path: Path):
    for name in ("figures", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    records = sorted((tmp_path / "figures").glob("*.json"))
    for record in records:
        text = record.read_text(encoding="utf-8")
        place = re.search(r"\d", text[text.index('"rows"') :])
        assert place
        at = text.index('"rows"') + place.start()
        record.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :], encoding="utf-8")
    red = {fault.file for fault in check(tmp_path) if fault.field == "record_sha256"}
    assert red == {f"figures/{record.name}" for record in records}
    assert len(records) >= 10


def test_every_kind_of_output_that_nbval_skips_is_written_down():
    spec = spec_from_file_location("notebooks_conftest", ROOT / "notebooks" / "conftest.py")
    assert spec
    assert spec.loader
    conftest = module_from_spec(spec)
    spec.loader.exec_module(conftest)
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [kind for kind in conftest.SKIPPED if f"`{kind}`" not in told] == []
