"""Every stored notebook keeps the rules, and every rule reports a notebook that breaks it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from matplotlib.figure import Figure

from notebook_rules import MAX_BYTES, MAX_BYTES_WITH_FIGURE, MAX_CELLS, MAX_LINES, RULES, gallery, hygiene
from refusalscope.figures import FOLDER_VARIABLE, read_manifest, save

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = ROOT / "figures"
CONFTEST = ROOT / "notebooks" / "conftest.py"

# The notebooks and figures of this repository.


def test_every_stored_notebook_keeps_every_rule():
    books = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in NOTEBOOKS}
    assert {name: problems for name, book in books.items() if (problems := hygiene(book))} == {}


def test_every_stored_notebook_follows_the_notebook_format():
    for path in NOTEBOOKS:
        nbformat.validate(json.loads(path.read_text(encoding="utf-8")))


def test_the_five_notebooks_exist():
    assert len(NOTEBOOKS) >= 5, f"only {[path.stem for path in NOTEBOOKS]}: five notebooks are due"


def test_every_figure_has_a_record_and_a_manifest_row():
    assert gallery(FIGURES) == []
    assert read_manifest(FIGURES) or not NOTEBOOKS, "there are notebooks, but no figure in the manifest"


def test_every_figure_names_a_notebook_that_is_there():
    assert {row["notebook"] for row in read_manifest(FIGURES)} <= {path.stem for path in NOTEBOOKS}


# Each rule reports what breaks it.


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str, count: int, *, plain: str = "", tags: tuple[str, ...] = ()) -> dict:
    data = {"text/html": ["<b>3.14</b>"], "text/plain": [plain]}
    result = {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}
    cell = {"cell_type": "code", "execution_count": count, "source": source.splitlines(keepends=True)}
    return cell | {"metadata": {"tags": list(tags)}, "outputs": [result] if plain else []}


def notebook() -> dict:
    cells = [
        markdown("# Locate\n\nWhich layer carries refusal? See [the paper](https://arxiv.org/abs/2406.11717)."),
        code("SEED = 0\nMODEL = 'guarded'", 1, tags=("parameters",)),
        code("import refusalscope as rs\nrs.load(MODEL)", 2, plain="guarded, a chat model of six layers"),
        markdown("It speaks. Where do its refusals differ from its answers?"),
        code("rs.locate(MODEL)", 3, plain="figure margins saved: ablation takes the margin below zero"),
        markdown("In the middle layers, as <https://example.org/2024> says."),
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def source(number: int, content: str) -> Callable[[dict], None]:
    return lambda book: book["cells"][number].update(source=content)


def plain(content: str) -> Callable[[dict], None]:
    return lambda book: book["cells"][4]["outputs"][0]["data"].update({"text/plain": content})


def html(content: str) -> Callable[[dict], None]:
    return lambda book: book["cells"][4]["outputs"][0]["data"].update({"text/html": content})


def tags(number: int, *names: str) -> Callable[[dict], None]:
    return lambda book: book["cells"][number]["metadata"].update(tags=list(names))


def insert(place: int, *cells: dict) -> Callable[[dict], None]:
    return lambda book: book["cells"].__setitem__(slice(place, place), cells)


def output(**fields: object) -> Callable[[dict], None]:
    return lambda book: book["cells"][4]["outputs"].append(fields)


def stripped(book: dict) -> None:
    for cell in book["cells"]:
        cell.update(outputs=[]) if cell["cell_type"] == "code" else None


def many(n: int) -> Callable[[dict], None]:
    pairs = [cell for k in range(n) for cell in (markdown("And?"), code("rs.locate(MODEL)", 4 + k, plain="so"))]
    return insert(5, *pairs)


def few_results(book: dict) -> None:
    many(3)(book)
    for cell in book["cells"][4:]:
        if cell["cell_type"] == "code":
            cell.update(source="x = 0", outputs=[])


PROGRESS = {"text/plain": "  0%|", "application/vnd.jupyter.widget-view+json": {"model_id": "x"}}
BROKEN: dict[str, tuple[Callable[[dict], None], str]] = {
    "no parameters": (tags(1), "tag `parameters`"),
    "parameters later": (lambda book: (tags(1)(book), tags(2, "parameters")(book)), "tag `parameters`"),
    "parameters twice": (tags(4, "parameters"), "tag `parameters`"),
    "six parameters": (source(1, "\n".join(f"{name} = 0" for name in "ABCDEF")), "one to 5 assignments"),
    "a small parameter": (source(1, "seed = 0"), "one to 5 assignments"),
    "a computed parameter": (source(1, "SEED = int('0')"), "one to 5 assignments"),
    "an import among parameters": (source(1, "import os\nSEED = 0"), "one to 5 assignments"),
    "no parameter at all": (source(1, "# SEED = 0"), "one to 5 assignments"),
    "many cells": (many(MAX_CELLS - 2), f"{MAX_CELLS + 1} code cells"),
    "a long cell": (source(2, "\n".join(["x = 0"] * (MAX_LINES + 1))), f"{MAX_LINES + 1} lines"),
    "an empty cell": (source(2, " "), "code cell 2 is empty"),
    "a function": (source(2, "def f():\n    return 0\nf()"), "defines a function"),
    "an inner function": (source(2, "if MODEL:\n    def f():\n        return 0\nMODEL"), "defines a function"),
    "a class": (source(2, "class A:\n    pass"), "defines a function or a class"),
    "a named lambda": (source(2, "f = lambda: 0"), "defines a function"),
    "a walrus lambda": (source(2, "(f := lambda: 0)"), "defines a function"),
    "a magic": (source(2, "%timeit 0"), "not plain Python"),
    "a shell command": (source(2, "!ls"), "not plain Python"),
    "a cell run twice": (lambda book: book["cells"][4].update(execution_count=4), "execution counts"),
    "a cell not run": (lambda book: book["cells"][4].update(execution_count=None), "execution counts"),
    "an error": (output(output_type="error", ename="E", evalue="", traceback=["E"]), "ends in an error"),
    "stripped outputs": (stripped, "fewer than half"),
    "few results": (few_results, "fewer than half"),
    "a silent expression": (lambda book: book["cells"][4].update(outputs=[]), "shows nothing"),
    "only a progress bar": (
        lambda book: book["cells"][4].update(outputs=[{"output_type": "display_data", "data": PROGRESS}]),
        "shows nothing",
    ),
    "only a warning": (
        lambda book: book["cells"][4].update(outputs=[{"output_type": "stream", "name": "stderr", "text": "slow"}]),
        "shows nothing",
    ),
    "an address": (plain("<refusalscope.Choice object at 0x7f01>"), "vacuous"),
    "a bare figure": (plain("<Figure size 640x480 with 1 Axes>"), "vacuous"),
    "a None": (plain("None"), "vacuous"),
    "an ignored output": (source(4, "# NBVAL_IGNORE_OUTPUT\nrs.locate(MODEL)"), "tells nbval"),
    "an ignoring tag": (tags(4, "nbval-ignore-output"), "tells nbval"),
    "an allowed exception": (tags(4, "raises-exception"), "tells nbval"),
    "decimals in a result": (plain("margin 3.14 nats"), "decimals"),
    "an exponent in a result": (plain("KL 3e-05"), "decimals"),
    "decimals printed": (output(output_type="stream", name="stdout", text=["margin 3.14"]), "decimals"),
    "a claim that does not hold": (plain("DOES NOT HOLD: refusal is optional"), "DOES NOT HOLD: refusal is optional"),
    "a claim that does not hold, among others": (
        plain("['Holds: one',\n 'DOES NOT HOLD: two']"),
        "code cell 3 stores a claim that its numbers do not bear out",
    ),
    "a claim that does not hold, printed": (
        output(output_type="stream", name="stdout", text=["DOES NOT HOLD: it is"]),
        "numbers do not bear out",
    ),
    "a digit in prose": (source(3, "It is layer 4."), "digit in prose: 'It is layer 4.'"),
    "a digit in the text of a link": (source(3, "[layer 4](https://example.org)"), "digit in prose"),
    "a numbered list": (source(3, "1. First"), "digit in prose"),
    "no first question": (lambda book: book["cells"].pop(0), "begin with a question"),
    "no last answer": (lambda book: book["cells"].pop(), "end with an answer"),
    "an empty answer": (source(5, " \n"), "end with an answer"),
    "no prose between": (lambda book: book["cells"].pop(3), "code cells 2 and 3 have no prose"),
    "an empty cell between": (source(3, ""), "code cells 2 and 3 have no prose"),
    "a path": (plain("read /work/main/data"), "path of this machine, /work"),
    "a path in HTML": (html('<a href="/home/someone">'), "path of this machine, /home"),
    "a file URL": (html("file:///root/x"), "path of this machine, /root"),
    "a path in a warning": (
        output(output_type="stream", name="stderr", text="/root/x.py:3: Warning"),
        "path of this machine",
    ),
    "a Windows path": (plain(r"C:\Users\someone"), "path of this machine"),
    "a large output": (html("x" * MAX_BYTES), "bytes of output"),
    "a large figure": (html("data:image/png;base64," + "A" * MAX_BYTES_WITH_FIGURE), "bytes of output"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_notebook_is_reported(case: str):
    break_it, expected = BROKEN[case]
    broken = notebook()
    break_it(broken)
    assert any(expected in problem for problem in hygiene(broken)), hygiene(broken)


def test_every_rule_reports_some_broken_notebook():
    silent = set(RULES)
    for break_it, _ in BROKEN.values():
        broken = notebook()
        break_it(broken)
        silent -= {rule for rule in RULES if list(rule(broken))}
    assert not silent


ALLOWED: dict[str, Callable[[dict], None]] = {
    "the good one": lambda book: None,
    "twelve cells": many(MAX_CELLS - 3),
    "fifteen lines": source(2, "\n".join(["x = 0"] * MAX_LINES)),
    "a lambda as an argument": source(2, "sorted(MODEL, key=lambda one: one)"),
    "lists and negative numbers as parameters": source(1, "LAYERS = [-1, 2]\nDOSE = -0.5"),
    "whole numbers in a result": plain("12 of 12 organisms hold; digest a3e45f"),
    "a progress bar beside a result": output(output_type="display_data", data=PROGRESS),
    "a figure in HTML": html("data:image/png;base64," + "A/home/" * (MAX_BYTES // 7)),
    "a link to another notebook": source(
        3, "See [locating](02_locate.ipynb).\n\n[paper]: https://arxiv.org/abs/2406.11717"
    ),
    "a URL with a home in it": html('<a href="https://example.org/home/x">'),
    "prose in two cells": insert(3, markdown("It speaks.")),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_good_notebook_passes(case: str):
    good = notebook()
    ALLOWED[case](good)
    assert hygiene(good) == []


def test_a_notebook_may_be_stored_in_lines_or_whole():
    whole = notebook()
    for cell in whole["cells"]:
        cell["source"] = "".join(cell["source"])
    assert hygiene(whole) == []


# The folder of figures.


def put(folder: Path, name: str = "margins", value: float = 1.0, notebook: str = "small") -> None:
    folder.mkdir(exist_ok=True)
    save(Figure(), name, data=pd.DataFrame({"margin": [value]}), claim="it holds", notebook=notebook, folder=folder)


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


def double_last_line(file: Path) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[-1]]))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no SVG": (lambda folder: (folder / "margins.svg").unlink(), "margins: no svg"),
    "an empty PNG": (lambda folder: (folder / "margins.png").write_bytes(b""), "margins: no png"),
    "no record": (lambda folder: (folder / "margins.json").unlink(), "margins: no json"),
    "no manifest": (lambda folder: (folder / "manifest.csv").unlink(), "margins: files without a row"),
    "a changed record": (edit("margins.json", "1.0", "2.0"), "margins: the record is not the one"),
    "an unreadable record": (edit("margins.json", "schema", "scheme"), "is not a figure record"),
    "another claim": (
        edit("manifest.csv", "it holds", "it fails"),
        "margins: the record and the manifest differ in claim",
    ),
    "another seed": (edit("manifest.csv", "small,,,", "small,,3,"), "differ in seed"),
    "a row of no figure": (edit("manifest.csv", "margins", "margin"), "margin: no svg, png, json"),
    "a double row": (lambda folder: double_last_line(folder / "manifest.csv"), "double"),
    "another header": (edit("manifest.csv", "figure,notebook", "figure,book"), "does not have the columns"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_folder_of_figures_is_reported(case: str, tmp_path: Path):
    spoil, expected = SPOILED[case]
    put(tmp_path)
    assert gallery(tmp_path) == []
    spoil(tmp_path)
    assert any(expected in problem for problem in gallery(tmp_path)), gallery(tmp_path)


# Drift between the committed records and those of a run.


def drift(fresh: Path, committed: Path, notebooks: set[str]) -> list[str]:
    spec = spec_from_file_location("notebooks_conftest", CONFTEST)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.drift(fresh, committed, notebooks=notebooks)


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        (1.0, "margins", []),
        (1.001, "margins", []),
        (1.1, "margins", ["margins: data: row 0, margin: 1.0 became 1.1"]),
        (1.0, "other", ["Cannot read the figure record", "margins: its notebook ran and did not save it"]),
    ],
)
def test_drift_is_what_a_run_shows_and_the_repository_does_not(value, name, expected, tmp_path: Path):
    put(tmp_path / "committed")
    put(tmp_path / "fresh", name, value)
    found = drift(tmp_path / "fresh", tmp_path / "committed", {"small"})
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True))


def test_a_figure_of_a_notebook_that_did_not_run_may_be_absent(tmp_path: Path):
    put(tmp_path / "committed")
    (tmp_path / "fresh").mkdir()
    assert drift(tmp_path / "fresh", tmp_path / "committed", {"another"}) == []


CELL = """import pandas as pd
from matplotlib.figure import Figure
from refusalscope.figures import save
save(Figure(), "margins", data=pd.DataFrame({"margin": [1.0]}), claim="it holds", notebook="small")"""
CLAIMED = "figure margins saved: it holds"


def validated(folder: Path, *, committed: float, claim: str = CLAIMED) -> subprocess.CompletedProcess[str]:
    """What nbval says of one notebook that saves one figure, beside a committed record of that figure."""
    (folder / "notebooks").mkdir()
    put(folder / "figures", value=committed)
    shutil.copy(CONFTEST, folder / "notebooks")
    book = notebook() | {"cells": [code(CELL, 1, plain=claim)]}
    (folder / "notebooks" / "small.ipynb").write_text(json.dumps(book | {"nbformat_minor": 4}))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval",
        "--nbval-current-env",
        "notebooks",
    ]
    place = os.environ | {"TMPDIR": str(folder)}
    return subprocess.run(command, cwd=folder, env=place, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("committed", "claim", "code", "said"),
    [
        (1.0, CLAIMED, 0, "1 passed"),
        (2.0, CLAIMED, 1, "margins: data: row 0, margin: 2.0 became 1.0"),
        (1.0, "figure margins saved: it fails", 1, "it fails"),
    ],
)
def test_nbval_compares_the_claim_and_the_record(committed, claim, code, said, tmp_path: Path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    run = validated(tmp_path, committed=committed, claim=claim)
    assert (run.returncode, said in run.stdout) == (code, True), run.stdout + run.stderr
    kept = json.loads((tmp_path / "figures" / "margins.json").read_text())
    assert kept["tables"]["data"]["rows"] == [[committed]], "the run overwrote the committed record"
