"""What is saved is deterministic, whole or absent, closed in schema, and found out when a digit changes."""

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from refusalscope import figures
from refusalscope.claims import claim
from refusalscope.errors import ResultError
from refusalscope.figure_record import MAX_COLUMNS, MAX_ROWS, make_record
from refusalscope.figures import Record, SavedFigure, compare, read_manifest, read_record, save

CLAIM = "ablation takes the margin below zero"
FRAME = pd.DataFrame(
    {
        "layer": [0, 1],
        "margin": [6.712345678, float("nan")],
        "label": ["harmless", "restricted"],
        "chosen": [False, True],
    }
)


def drawing() -> Figure:
    figure, axes = plt.subplots()
    axes.plot([0, 1], [6.7, -3.1])
    axes.fill_between([0, 1], [6, -4], [7, -2], hatch="/")
    axes.set_title("margin")
    return figure


def saved(folder: Path, name: str = "margins", **options) -> SavedFigure:
    return save(drawing(), name, **({"data": FRAME, "claim": CLAIM, "folder": folder} | options))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def record(**options) -> Record:
    return make_record("margins", {"data": FRAME}, **({"claim": CLAIM, "tolerance": {}} | options))


@pytest.fixture(autouse=True)
def _no_figure_stays_open(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(figures.FOLDER_VARIABLE, raising=False)
    yield
    plt.close("all")


# What is written.


def test_saving_writes_three_files_and_one_row(tmp_path: Path):
    saved(tmp_path, notebook="02_locate", recipe="ab12", seed=3)
    assert sorted(contents(tmp_path)) == ["manifest.csv", "margins.json", "margins.png", "margins.svg"]
    (row,) = read_manifest(tmp_path)
    assert row["record_sha256"] == hashlib.sha256((tmp_path / "margins.json").read_bytes()).hexdigest()
    expected = {"figure": "margins", "notebook": "02_locate", "recipe": "ab12", "seed": "3", "claim": CLAIM}
    assert expected.items() <= row.items()
    assert re.fullmatch(r"refusalscope \S+(; [a-z-]+ \S+)+", row["versions"])


def test_saving_twice_gives_the_same_bytes(tmp_path: Path):
    saved(tmp_path)
    first = contents(tmp_path)
    saved(tmp_path)
    assert contents(tmp_path) == first


def test_the_pictures_do_not_depend_on_global_settings(tmp_path: Path):
    figure = drawing()
    save(figure, "margins", data=FRAME, claim=CLAIM, folder=tmp_path)
    first = contents(tmp_path)
    with mpl.rc_context({"svg.fonttype": "none", "savefig.facecolor": "red", "hatch.linewidth": 5, "svg.id": "x"}):
        save(figure, "margins", data=FRAME, claim=CLAIM, folder=tmp_path)
    assert contents(tmp_path) == first


def test_a_different_drawing_gives_different_pictures(tmp_path: Path):
    saved(tmp_path)
    first, other = contents(tmp_path), drawing()
    other.axes[0].plot([0, 1], [0, 0])
    save(other, "margins", data=FRAME, claim=CLAIM, folder=tmp_path)
    changed = {name for name, content in contents(tmp_path).items() if content != first[name]}
    assert changed == {"margins.png", "margins.svg"}


def test_the_pictures_carry_no_date_and_no_program(tmp_path: Path):
    files = contents(saved(tmp_path).folder)
    assert b"<dc:date>" not in files["margins.svg"]
    assert b"Matplotlib" not in files["margins.svg"]
    assert b"Software" not in files["margins.png"]


def test_the_figure_is_closed_after_saving(tmp_path: Path):
    figure = drawing()
    assert plt.fignum_exists(figure.number)
    save(figure, "margins", data=FRAME, claim=CLAIM, folder=tmp_path)
    assert not plt.fignum_exists(figure.number)


def test_the_manifest_keeps_one_sorted_row_per_figure(tmp_path: Path):
    for name in ("b", "c", "a", "b"):
        saved(tmp_path, name, claim=f"claim, with a comma, of {name}")
    rows = read_manifest(tmp_path)
    assert [row["figure"] for row in rows] == ["a", "b", "c"]
    assert [row["claim"][-1] for row in rows] == ["a", "b", "c"]


def test_figures_saved_at_once_all_have_a_row(tmp_path: Path):
    rows = [dict.fromkeys(figures.MANIFEST_COLUMNS, "x") | {"figure": f"figure_{n:02}"} for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: figures._enter(tmp_path, row), rows))
    assert read_manifest(tmp_path) == rows


# The default folder.


def checkout(folder: Path, name: str = "refusalscope") -> Path:
    (folder / "figures").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    return folder / "figures"


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(figures.FOLDER_VARIABLE, str(tmp_path))
    assert saved(None).folder == tmp_path


def test_the_checkout_around_the_working_directory_has_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = checkout(tmp_path / "clone")
    inner = checkout(tmp_path / "clone" / "other", name="something").parent
    monkeypatch.chdir(inner)
    assert saved(None).folder == expected


def test_outside_a_checkout_saving_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResultError, match=r"No checkout of refusalscope .* set REFUSALSCOPE_FIGURES"):
        saved(None)


def test_a_missing_folder_is_named_in_one_line(tmp_path: Path):
    with pytest.raises(ResultError, match=r"^No folder .*absent to save figures in\. .*$") as caught:
        saved(tmp_path / "absent")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_is_named_in_one_line(tmp_path: Path):
    (tmp_path / "margins.png").mkdir()
    with pytest.raises(ResultError, match=r"^Cannot write .*margins\.png: [\w ]+\.$"):
        saved(tmp_path)


# Whole or absent.


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_old_files(tmp_path: Path, monkeypatch, step: str, error: BaseException):
    saved(tmp_path)
    before = contents(tmp_path)

    def fail(*_: object):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises((ResultError, KeyboardInterrupt)):
        saved(tmp_path, data=FRAME.iloc[:1], claim="another claim")
    assert contents(tmp_path) == before


def test_a_refused_record_leaves_the_old_files(tmp_path: Path):
    saved(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ResultError):
        saved(tmp_path, data=FRAME.assign(text=[["a"], ["b"]]))
    assert contents(tmp_path) == before


# The closed schema, on write.


REFUSED = {
    "lists": (FRAME.assign(direction=[[0.1], [0.2]]), r"Column 'direction' holds a list"),
    "arrays": (FRAME.assign(direction=[np.zeros(3), np.zeros(3)]), r"Column 'direction' holds a ndarray"),
    "dates": (FRAME.assign(day=pd.Timestamp(0)), r"Column 'day' holds a Timestamp"),
    "infinity": (FRAME.assign(margin=float("inf")), r"finite"),
    "long text": (FRAME.assign(label="x" * 121), r"at most 120 characters"),
    "lines": (FRAME.assign(label="a\nb"), r"pattern"),
    "many rows": (pd.DataFrame({"layer": range(MAX_ROWS + 1)}), rf"at most {MAX_ROWS} items"),
    "many columns": (
        pd.DataFrame([dict.fromkeys(map(str, range(MAX_COLUMNS + 1)), 0)]),
        rf"at most {MAX_COLUMNS} items",
    ),
    "no rows": (FRAME.iloc[:0], r"at least 1 item"),
    "no tables": ({}, r"tables"),
    "a named index": (FRAME.set_index("layer"), r"index \['layer'\] would not be saved. Call reset_index"),
    "unnamed columns": (pd.DataFrame([[1, 2]]), r"columns.0: .*string"),
    "double columns": (pd.DataFrame([[1, 2]], columns=["a", "a"]), r"columns repeat"),
    "a table name with spaces": ({"two words": FRAME}, r"pattern"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_record_refuses(case: str, tmp_path: Path):
    data, message = REFUSED[case]
    with pytest.raises(ResultError, match=message):
        saved(tmp_path, data=data)
    assert not contents(tmp_path)


@pytest.mark.parametrize("name", ["", "Margins", "a-b", "../a", "a/b", "a b", "é", "a\n"])
def test_a_name_is_of_small_letters_digits_and_underscores(name: str, tmp_path: Path):
    with pytest.raises(ResultError, match="figure"):
        saved(tmp_path, name)
    assert not contents(tmp_path)


@pytest.mark.parametrize("claim", ["", " ", "two\nlines", "x" * 301])
def test_a_claim_is_one_line(claim: str, tmp_path: Path):
    with pytest.raises(ResultError, match="claim"):
        saved(tmp_path, claim=claim)


@pytest.mark.parametrize("tolerance", [{"absent": 1.0}, {"margin": -1.0}, {"margin": float("nan")}])
def test_a_tolerance_is_a_bound_for_a_column(tolerance: dict[str, float], tmp_path: Path):
    with pytest.raises(ResultError, match="tolerance"):
        saved(tmp_path, tolerance=tolerance)


def test_cells_are_plain_values_at_six_digits():
    (table,) = record().tables.values()
    assert table.rows == ((0, 6.71235, "harmless", False), (1, None, "restricted", True))
    assert [type(cell) for cell in table.rows[0]] == [int, float, str, bool]


def test_the_bounds_themselves_are_allowed():
    wide = pd.DataFrame([dict.fromkeys(map(str, range(MAX_COLUMNS)), 0)] * MAX_ROWS)
    assert make_record("wide", {"data": wide}, claim=CLAIM, tolerance={})


# The closed schema, on read.


def test_a_record_reads_back_as_it_was_written(tmp_path: Path):
    saved(tmp_path, seed=3, notebook="02_locate", tolerance={"margin": 0.5})
    assert read_record(tmp_path / "margins.json") == record(seed=3, notebook="02_locate", tolerance={"margin": 0.5})


BROKEN = {
    "an unknown key": ('"seed": null', '"seed": null, "direction": 1'),
    "an unknown key in a table": ('"tolerance": {}', '"tolerance": {}, "direction": 1'),
    "a missing key": ('"seed": null,', ""),
    "a double key": ('"seed": null', '"seed": null, "seed": 1'),
    "another schema": ('"schema": 1', '"schema": 2'),
    "a text for a number": ('"seed": null', '"seed": "3"'),
    "a list in a cell": ("6.71235", "[6.71235]"),
    "a nan": ("6.71235", "NaN"),
    "a short row": ("[0, 6.71235", "[6.71235"),
    "no JSON": ('"schema"', "schema"),
    "deep arrays": ("6.71235", "[" * 100_000),
}


@pytest.mark.parametrize("case", BROKEN)
def test_reading_refuses(case: str, tmp_path: Path):
    file, (old, new) = tmp_path / "margins.json", BROKEN[case]
    assert old in record().to_json()
    file.write_text(record().to_json().replace(old, new))
    with pytest.raises(ResultError, match=r"margins\.json"):
        read_record(file)


def test_an_absent_record_is_named(tmp_path: Path):
    with pytest.raises(ResultError, match=r"absent\.json"):
        read_record(tmp_path / "absent.json")


def test_a_manifest_with_other_columns_is_refused(tmp_path: Path):
    saved(tmp_path)
    for text in ("figure,claim\na,b\n", ",".join(figures.MANIFEST_COLUMNS) + "\na,b\n"):
        (tmp_path / "manifest.csv").write_text(text)
        with pytest.raises(ResultError, match="columns"):
            saved(tmp_path)


# Drift.


def test_a_record_equals_itself():
    assert compare(record(), record()) == []


def test_every_flipped_leading_digit_in_a_saved_record_is_found(tmp_path: Path):
    file = tmp_path / "margins.json"
    saved(tmp_path, seed=3, notebook="02_locate")
    text, honest = file.read_text(), read_record(file)
    body = text.index('"figure"')
    places = [hit.start() for hit in re.finditer(r"(?<![\d.])\d", text) if hit.start() > body]
    for place in places:
        file.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        assert compare(honest, read_record(file)), f"not found: digit {place}, {text[place - 10 : place + 10]!r}"
    assert len(places) >= 5


@pytest.mark.parametrize(
    ("field", "value"), [("figure", "other"), ("claim", "other"), ("notebook", "other"), ("seed", 1), ("tables", {})]
)
def test_every_field_of_a_record_is_compared(field: str, value: object):
    other = json.loads(record().to_json()) | {
        field: value or {"other": json.loads(record().to_json())["tables"]["data"]}
    }
    assert any(field in line for line in compare(record(), figures_record(other)))


def figures_record(content: dict) -> Record:
    tables = {key: pd.DataFrame(one["rows"], columns=one["columns"]) for key, one in content["tables"].items()}
    heads = {key: content[key] for key in ("claim", "notebook", "seed")}
    return make_record(content["figure"], tables, tolerance={}, **heads)


def with_margin(value: object, **options) -> Record:
    frame = pd.DataFrame({"margin": pd.Series([value], dtype=object)})
    return make_record("margins", {"data": frame}, **({"claim": CLAIM, "tolerance": {}} | options))


@pytest.mark.parametrize(
    ("a", "b", "tolerance", "agree"),
    [
        (100.0, 100.1, None, True),  # 1e-3 + 1e-3 * 100.1 = 0.1011
        (100.0, 100.2, None, False),
        (0.0, 0.0009, None, True),
        (0.0, 0.0012, None, False),
        (3, 4, None, False),
        (3000, 3001, None, False),
        (3, 4, 1.0, True),
        (3.0, 3.4, 0.5, True),
        (3.0, 3.6, 0.5, False),
        (100.0, 100.1, 0.0, False),
        (3, 3.0, None, True),
        (True, 1, None, False),
        ("3", 3, None, False),
        (None, 0.0, 9.0, False),
        (None, None, None, True),
        ("a", "b", 9.0, False),
    ],
)
def test_cells_agree_within_their_tolerance(a: object, b: object, tolerance: float | None, agree: bool):
    given = {} if tolerance is None else {"margin": tolerance}
    for first, second in ((a, b), (b, a)):
        found = compare(with_margin(first, tolerance=given), with_margin(second, tolerance=given))
        assert (found == []) is agree


def test_a_loosened_tolerance_is_a_difference():
    assert compare(with_margin(1.0), with_margin(1.0, tolerance={"margin": 9.0})) == [
        "data: tolerance: {} became {'margin': 9.0}"
    ]


def test_rows_and_columns_that_come_or_go_are_differences():
    (table,) = record().tables.values()
    fewer = replace(record(), tables={"data": replace(table, rows=table.rows[:1])})
    renamed = replace(record(), tables={"data": replace(table, columns=("layer", "margin", "label", "picked"))})
    assert compare(record(), fewer) == ["data: number of rows: 2 became 1"]
    assert len(compare(record(), renamed)) == 1


# How it shows.


def test_the_text_states_the_claim(tmp_path: Path):
    assert repr(saved(tmp_path)) == f"figure margins saved: {CLAIM}"


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list):
        self.tags.append((tag, dict(attrs)))


def test_the_html_shows_the_picture_and_escapes_the_claim(tmp_path: Path):
    claim = 'a < b "quoted" <script>alert()</script> & c'
    page = saved(tmp_path, claim=claim)._repr_html_()
    tags = Tags(page).tags
    assert [tag for tag, _ in tags] == ["figure", "img", "figcaption"]
    assert tags[1][1]["alt"] == claim
    assert tags[1][1]["src"].startswith("data:image/png;base64,iVBORw0KGgo")


def test_a_saved_figure_is_frozen(tmp_path: Path):
    figure = saved(tmp_path)
    with pytest.raises(FrozenInstanceError):
        figure.claim = "other"


@pytest.mark.parametrize("holds", [True, False])
def test_a_figure_whose_claim_does_not_hold_is_not_saved(holds: bool, tmp_path: Path):
    """The figure takes its sentence from a claim; one that the numbers contradict leaves no file."""
    told = claim("one is less than two", holds, {"one": 1, "two": 2})
    frame = pd.DataFrame({"one": [1]})
    if holds:
        assert save(Figure(), "margins", data=frame, claim=told, folder=tmp_path).claim == told.sentence
        assert read_record(tmp_path / "margins.json").claim == told.sentence
        return
    with pytest.raises(ResultError, match=r"margins: its claim DOES NOT HOLD: one is less than two .*two: 2"):
        save(Figure(), "margins", data=frame, claim=told, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
