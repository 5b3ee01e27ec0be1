"""`refusalscope figures`: a folder that belongs together passes; each way to fall apart is one line that names it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from refusalscope import reproduce
from refusalscope.cli import app
from refusalscope.errors import ResultError
from refusalscope.figure_check import Fault, check, recompute
from refusalscope.figure_sheet import contact_sheet, saved_in
from refusalscope.figures import FOLDER_VARIABLE, MANIFEST_COLUMNS, read_manifest, save

ROOT = Path(__file__).parents[1]
CELL = """import pandas as pd
from matplotlib.figure import Figure
from refusalscope.figures import save
save(Figure(), "{name}", data=pd.DataFrame({{"margin": [{value}]}}), claim="it holds", notebook="{notebook}", seed=0)"""


def code(source: str, plain: str) -> dict:
    output = {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"text/plain": [plain]}}
    head = {"cell_type": "code", "execution_count": 1, "metadata": {}}
    return head | {"source": source.splitlines(keepends=True), "outputs": [output]}


def add(root: Path, notebook: str, **values: float) -> None:
    """A notebook that saves figures of one number each, and those figures."""
    cells = [
        code(CELL.format(name=name, value=value, notebook=notebook), f"figure {name} saved: it holds")
        for name, value in values.items()
    ]
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    (root / "notebooks" / f"{notebook}.ipynb").write_text(json.dumps(book))
    for name, value in values.items():
        frame, figure = pd.DataFrame({"margin": [value]}), Figure(figsize=(2, 1 + value / 10))
        save(figure, name, data=frame, claim="it holds", notebook=notebook, seed=0, folder=root / "figures")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A checkout whose three figures are as their records say."""
    root = tmp_path_factory.mktemp("whole")
    for name in ("figures", "notebooks"):
        (root / name).mkdir()
    add(root, "01_small", margins=1.0, answers=2.0)
    add(root, "00_first", opening=3.0)
    pins = dict(one.split(" ") for one in read_manifest(root / "figures")[0]["versions"].split("; "))
    (root / "constraints.txt").write_text("".join(f"{name}=={pin.split('+')[0]}\n" for name, pin in pins.items()))
    sheet(root)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkout"))


def sheet(root: Path) -> None:
    (root / "figures" / "README.md").write_text(contact_sheet(root), encoding="utf-8")


def test_the_figures_of_this_repository_are_as_their_records_say():
    assert [str(fault) for fault in check(ROOT)] == []


def test_figures_that_belong_together_have_no_fault(root: Path):
    assert check(root) == []


# Each way to fall apart.

Spoil = Callable[[Path], object]


def edit(name: str, old: str, new: str, count: int = -1) -> Spoil:
    """Replaces text of a file, in which it must stand."""

    def spoil(root: Path) -> None:
        text = (root / name).read_text(encoding="utf-8")
        assert old in text
        (root / name).write_text(text.replace(old, new, count), encoding="utf-8")

    return spoil


def row(name: str, **cells: str) -> Spoil:
    """Writes other cells into the row of a figure."""

    def spoil(root: Path) -> None:
        rows = pd.DataFrame(read_manifest(root / "figures"), columns=list(MANIFEST_COLUMNS))
        for column, cell in cells.items():
            rows.loc[rows["figure"] == name, column] = cell
        rows.to_csv(root / "figures" / "manifest.csv", index=False, lineterminator="\n")

    return spoil


def swap(a: str, b: str) -> Spoil:
    def spoil(root: Path) -> None:
        first, second = (root / "figures" / name for name in (a, b))
        contents = first.read_bytes(), second.read_bytes()
        second.write_bytes(contents[0])
        first.write_bytes(contents[1])

    return spoil


def flipped_bit(root: Path) -> None:
    picture = root / "figures" / "margins.png"
    raw = bytearray(picture.read_bytes())
    raw[-30] ^= 1
    picture.write_bytes(raw)


def reversed_rows(root: Path) -> None:
    file = root / "figures" / "manifest.csv"
    head, *rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join([head, *reversed(rows)]))


def doubled_row(root: Path) -> None:
    file = root / "figures" / "manifest.csv"
    file.write_text(file.read_text() + file.read_text().splitlines(keepends=True)[-1])


def resaved(root: Path) -> None:
    """A record and its row of other numbers, under the pictures of the old ones."""
    record = root / "figures" / "margins.json"
    edit("figures/margins.json", "[1.0]", "[1.5]")(root)
    row("margins", record_sha256=hashlib.sha256(record.read_bytes()).hexdigest())(root)


def stretched(root: Path) -> None:
    """A PNG of another shape that carries the right digest."""
    from PIL import Image, PngImagePlugin

    file, told = root / "figures" / "margins.png", PngImagePlugin.PngInfo()
    with Image.open(file) as picture:
        told.add_text("Source", picture.info["Source"])
    Image.new("RGB", (50, 50)).save(file, pnginfo=told)


SPOILED: dict[str, tuple[Spoil, str, str]] = {
    "no SVG": (lambda root: (root / "figures/margins.svg").unlink(), "figures/margins.svg", "file"),
    "an empty PNG": (lambda root: (root / "figures/margins.png").write_bytes(b""), "figures/margins.png", "file"),
    "no record": (lambda root: (root / "figures/margins.json").unlink(), "figures/margins.json", "file"),
    "a digit of the record": (edit("figures/margins.json", "[1.0]", "[2.0]"), "figures/margins.json", "record_sha256"),
    "a digest in the row": (row("margins", record_sha256="0" * 64), "figures/margins.json", "record_sha256"),
    "an unknown key": (edit("figures/margins.json", '"seed"', '"sead"'), "figures/margins.json", "schema"),
    "a record of another": (swap("margins.json", "answers.json"), "figures/margins.json", "figure"),
    "another claim": (row("margins", claim="it fails"), "figures/margins.json", "claim"),
    "another seed": (row("margins", seed="3"), "figures/margins.json", "seed"),
    "no seed": (row("margins", seed=""), "figures/margins.json", "seed"),
    "another notebook": (row("margins", notebook="00_first"), "figures/margins.json", "notebook"),
    "numbers without their pictures": (resaved, "figures/margins.svg", "Source"),
    "pictures of another": (swap("margins.png", "answers.png"), "figures/answers.png", "Source"),
    "a drawing without a source": (
        edit("figures/margins.svg", "dc:source", "dc:rights"),
        "figures/margins.svg",
        "Source",
    ),
    "a drawing cut short": (edit("figures/margins.svg", "</svg>", ""), "figures/margins.svg", "picture"),
    "a flipped bit": (flipped_bit, "figures/margins.png", "picture"),
    "another shape": (stretched, "figures/margins.png", "size"),
    "no manifest row": (edit("figures/manifest.csv", "margins", "margin"), "figures/margins.svg", "file"),
    "a row without files": (edit("figures/manifest.csv", "margins", "margin"), "figures/margin.json", "file"),
    "an orphan": (lambda root: (root / "figures/old.pdf").write_text("x"), "figures/old.pdf", "file"),
    "a draft left behind": (lambda root: (root / "figures/.a.json.12ab").touch(), "figures/.a.json.12ab", "file"),
    "rows in another order": (reversed_rows, "figures/manifest.csv", "figure"),
    "a double row": (doubled_row, "figures/manifest.csv", "figure"),
    "an older version": (
        row("margins", versions="refusalscope 0; torch 1.0; transformers 5"),
        "figures/manifest.csv",
        "versions of margins",
    ),
    "a pin that moved": (edit("constraints.txt", "torch==", "torch==9"), "figures/manifest.csv", "versions of answers"),
    "a recipe of nothing": (row("margins", recipe="ab12"), "figures/manifest.csv", "recipe of margins"),
    "no such notebook": (
        lambda root: (root / "notebooks/00_first.ipynb").unlink(),
        "figures/manifest.csv",
        "notebook of opening",
    ),
    "no notebook named": (row("margins", notebook=""), "figures/manifest.csv", "notebook of margins"),
    "a notebook that is none": (
        lambda root: (root / "notebooks/01_small.ipynb").write_text("{}"),
        "notebooks/01_small.ipynb",
        "notebook",
    ),
    "a notebook that does not save it": (
        edit("notebooks/01_small.ipynb", "margins", "other"),
        "notebooks/01_small.ipynb",
        "figure",
    ),
    "a notebook that claims otherwise": (
        edit("notebooks/01_small.ipynb", "margins saved: it holds", "margins saved: it fails"),
        "notebooks/01_small.ipynb",
        "claim of margins",
    ),
    "a figure nobody kept": (
        edit("notebooks/00_first.ipynb", '\\"opening\\"', '\\"later\\"'),
        "notebooks/00_first.ipynb",
        "figure",
    ),
    "no contact sheet": (lambda root: (root / "figures/README.md").unlink(), "figures/README.md", "captions"),
    "a caption of yesterday": (edit("figures/README.md", "seed 0", "seed 1", 1), "figures/README.md", "captions"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_fault_is_named_by_file_and_field_with_one_action(case: str, root: Path):
    spoil, file, field = SPOILED[case]
    spoil(root)
    faults = check(root)
    (first, *_) = [fault for fault in faults if (fault.file, fault.field) == (file, field)] or [None]
    assert first is not None, "\n".join(map(str, faults))
    assert "\n" not in str(first)
    assert first.action.endswith(".")
    assert first.action.count(". ") == 0


def test_one_fault_is_reported_once(root: Path):
    (root / "figures" / "margins.png").unlink()
    assert [str(one) for one in check(root)] == [
        "figures/margins.png: file: missing or empty. Run its notebook again with `refusalscope reproduce`."
    ]


def test_a_recipe_of_an_organism_that_is_there_is_no_fault(root: Path):
    card = root / "data" / "organisms" / "guarded-0" / "organism.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"recipe": "ab12"}))
    row("margins", recipe="ab12")(root)
    assert check(root) == []


def test_a_figure_whose_name_is_computed_counts_when_the_output_says_it(root: Path):
    notebook = root / "notebooks" / "00_first.ipynb"
    edit("notebooks/00_first.ipynb", '\\"opening\\"', 'str(\\"opening\\")')(root)
    assert saved_in(notebook) == []
    assert check(root) == []
    edit("notebooks/00_first.ipynb", "figure opening saved", "figure saved")(root)
    assert [fault.field for fault in check(root)] == ["figure"]


# The contact sheet.


def test_the_sheet_numbers_the_figures_as_the_notebooks_save_them(root: Path):
    lines = contact_sheet(root).splitlines()
    assert [line for line in lines if line.startswith("![")] == [
        "![it holds](opening.png)",
        "![it holds](margins.png)",
        "![it holds](answers.png)",
    ]
    assert [line.split(" ")[1] for line in lines if line.startswith("## ")] == ["1.", "2.", "3."]


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ({"n": [12, 12]}, "n = 12"),
        ({"n": [12, 40, 13]}, "n from 12 to 40"),
        ({"n": [12.0, float("nan")]}, "n = 12"),
        ({"margin": [1.0, 2.0]}, "no n in its record, 2 rows drawn"),
        ({"margin": [1.0]}, "no n in its record, 1 row drawn"),
    ],
)
def test_a_caption_says_n_as_the_record_has_it(frame: dict, said: str, root: Path):
    folder = root / "figures"
    save(Figure(), "margins", data=pd.DataFrame(frame), claim="it holds", notebook="01_small", seed=7, folder=folder)
    assert f"[`01_small`](../notebooks/01_small.ipynb) · {said} · seed 7 · " in contact_sheet(root)


def test_a_caption_shows_markup_as_text(root: Path):
    claim = "a*b*_c_ [x](y) <script>alert()</script> | `d`"
    save(Figure(), "margins", data=pd.DataFrame({"n": [1]}), claim=claim, folder=root / "figures")
    text = contact_sheet(root)
    assert r"a\*b\*\_c\_ \[x\](y) \<script\>alert()\</script\> \| \`d\`" in text
    assert "no notebook · n = 1 · no seed · " in text


# The command.


def run(*words: object):
    result = CliRunner().invoke(app, ["figures", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_exits_with_zero_where_nothing_is_wrong_and_with_one_elsewhere(root: Path):
    assert (run("check", "--root", root).exit_code, run("check", "--root", root, "--json").stdout) == (0, "[]\n")
    (root / "figures" / "margins.png").unlink()
    told = run("check", "--root", root)
    assert (told.exit_code, len(told.stdout.splitlines())) == (1, 2)
    assert told.stdout.splitlines()[0].startswith("figures/margins.png: file: ")
    assert told.stdout.splitlines()[1] == "3 figures: 1 fault"
    (fault,) = json.loads(run("check", "--root", root, "--json").stdout)
    assert Fault(**fault) == check(root)[0]


def test_writing_the_sheet_makes_it_current(root: Path):
    (root / "figures" / "README.md").unlink()
    assert run("check", "--root", root).exit_code == 1
    assert run("sheet", "--root", root).exit_code == 0
    assert run("check", "--root", root).exit_code == 0


@pytest.mark.parametrize("command", ["check", "sheet"])
def test_a_place_without_figures_is_one_line(command: str, tmp_path: Path):
    for spoil in (lambda: None, (tmp_path / "figures").mkdir):
        spoil()
        result = run(command, "--root", tmp_path)
        assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
        assert str(tmp_path) in result.stderr
        assert "Run this from a checkout" in result.stderr


def test_an_unreadable_manifest_is_one_line(root: Path):
    edit("figures/manifest.csv", "figure,notebook", "figure,book")(root)
    result = run("check", "--root", root)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does not have the columns" in result.stderr


# Running the notebooks again.


def test_recomputing_finds_what_drifted_and_what_was_not_made_again_and_leaves_the_folder(root: Path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, "elsewhere")
    edit("notebooks/01_small.ipynb", "[2.0]", "[2.5]")(root)
    edit("notebooks/00_first.ipynb", "save(Figure()", "(lambda *_, **__: 0)(Figure()")(root)
    before = {file.name: file.read_bytes() for file in (root / "figures").iterdir()}
    said: list[str] = []
    faults = {fault.file: fault.problem for fault in recompute(root, say=said.append)}
    assert faults == {
        "notebooks/00_first.ipynb": "code cell 1 says something else than the stored output",
        "figures/answers.json": "drifted: data: row 0, margin: 2.0 became 2.5",
        "figures/opening.json": "no notebook saved it",
    }
    assert len(said) == 2
    assert {file.name: file.read_bytes() for file in (root / "figures").iterdir()} == before
    assert os.environ[FOLDER_VARIABLE] == "elsewhere"


@pytest.mark.parametrize(
    ("verdict", "state", "code"),
    [("claims hold", "same numbers", 0), ("failed", "same numbers", 1), ("claims hold", "new", 1)],
)
def test_the_command_adds_what_recomputing_finds(verdict, state, code, root: Path, monkeypatch):
    def again(_root, *, say, fresh):
        run = reproduce.Run("01_small", verdict, 1, 1.0, "a cell\nfailed", fresh)
        return [run], dict.fromkeys(("answers", "margins", "opening"), state)

    monkeypatch.setattr(reproduce, "reproduce", again)
    result = run("check", "--root", root, "--recompute")
    assert result.exit_code == code, result.stdout
    assert len(result.stdout.splitlines()) == 1 + (verdict == "failed") + 3 * (state == "new")


def test_recomputing_without_notebooks_is_an_error(root: Path):
    for notebook in (root / "notebooks").iterdir():
        notebook.unlink()
    with pytest.raises(ResultError, match="no notebooks to run"):
        recompute(root)
