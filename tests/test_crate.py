"""The crate of a run: whole it has no fault; without any file, field, reference or entity, the fault has its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crate_cases import (
    METADATA,
    checkout,
    crated,
    edited,
    metadata,
    ran,
    rewrite,
    without_a_field,
    without_a_reference,
    without_an_entity,
)
from refusalscope.crate.check import check
from refusalscope.errors import ResultError
from refusalscope.figure_check import Fault


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = checkout(tmp_path_factory.mktemp("whole"))
    crated(root)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkout"))


def faults(root: Path) -> list[Fault]:
    return check(root / "build" / "crate", root)


def lines(root: Path) -> list[str]:
    return [str(fault) for fault in faults(root)]


def test_a_crate_that_is_whole_has_no_fault(whole: Path):
    assert lines(whole) == []


def test_the_crate_of_a_run_in_which_a_notebook_failed_is_whole_too(root: Path):
    crated(root, ran(root, "00_first"), ran(root, "01_small", minute=1, error="ValueError: no"))
    assert lines(root) == []


# Everything the crate says is needed.


@pytest.mark.parametrize("error", ["", "ValueError: no"])
def test_any_field_that_is_gone_is_named_with_its_entity(root: Path, error: str):
    folder = crated(root, ran(root, "00_first"), ran(root, "01_small", minute=1, error=error))
    cases, silent = list(without_a_field(metadata(folder))), []
    for entity, field, changed in cases:
        rewrite(folder, changed)
        called = {entity, "figures/margins.svg"} if error and field == "result" else {entity}
        silent += [] if any(one.file in called and one.field == field for one in faults(root)) else [(entity, field)]
    assert silent == []
    assert {field for _, field, _ in cases} >= {"sha256", "version", "value", "startTime", "actionStatus"}
    assert ("error" in {field for _, field, _ in cases}) == bool(error)


def test_any_reference_that_is_gone_is_named_by_either_end(root: Path):
    folder = root / "build" / "crate"
    cases, silent = list(without_a_reference(metadata(folder))), []
    for entity, other, changed in cases:
        rewrite(folder, changed)
        named = [one for one in lines(root) if entity in one or other.removeprefix("#") in one]
        silent += [] if named else [(entity, other)]
    assert silent == []
    assert len(cases) > 50


def test_any_entity_that_is_gone_is_named(root: Path):
    folder = root / "build" / "crate"
    cases, silent = dict(without_an_entity(metadata(folder))), []
    for entity, changed in cases.items():
        rewrite(folder, changed)
        silent += [] if any(entity in line for line in lines(root)) else [entity]
    assert silent == []
    assert {"./", METADATA, "#machine/cores", "#00_first/SEED", "#torch", "figures/margins.svg"} <= set(cases)


def listed(root: Path) -> list[str]:
    """Every file that the crate holds or names, below the checkout."""
    held = [path.relative_to(root).as_posix() for path in (root / "build/crate").rglob("*") if path.is_file()]
    named = [entity["localPath"] for entity in metadata(root / "build/crate")["@graph"] if "localPath" in entity]
    return sorted({*held, *named} - {f"build/crate/{METADATA}"})


def test_any_file_that_is_gone_or_has_another_byte_is_named(root: Path):
    files, silent = [name for name in listed(root) if (root / name).is_file()], []
    for name in files:
        content = (root / name).read_bytes()
        (root / name).unlink()
        gone = lines(root)
        (root / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
        flipped = lines(root)
        (root / name).write_bytes(content)
        called = name.removeprefix("build/crate/")
        silent += [name] if f"{called}: file: missing. Run `refusalscope reproduce` again." not in gone else []
        silent += [name] if not any(line.startswith(f"{called}: sha256: ") for line in flipped) else []
    assert silent == []
    assert len(files) == 2 * 2 + 3 * 3 + 2 + 4  # notebooks twice, figures, manifest and constraints.txt, FILES
    assert lines(root) == []


# What must not be there, and what must be as it says.


@pytest.mark.parametrize(
    ("field", "value", "entity"),
    [
        ("sha256", "0" * 64, "figures/margins.svg"),
        ("contentSize", "1", "#data/prompts/few.jsonl"),
        ("value", 4, "#00_first/SEED"),
        ("version", "1.0", "#torch"),
        ("endTime", "2026-11-28T04:00:00+00:00", "#01_small"),
        ("startTime", "yesterday", "#01_small"),
        ("about", {"@id": "#elsewhere"}, METADATA),
        ("conformsTo", [{"@id": "#machine"}], "./"),
        ("localPath", "data/prompts/other.jsonl", "#data/prompts/few.jsonl"),
        ("name", "another.svg", "figures/margins.svg"),
        ("description", "seen at /home/ada/run", "#machine"),
        ("hostName", "den", "#machine"),
        ("@type", "Person", "#machine"),
        ("instrument", {"@id": "#notebooks/00_first.ipynb"}, "#01_small"),
    ],
)
def test_a_value_that_is_not_so_is_named(root: Path, field, value, entity):
    folder = root / "build" / "crate"

    def change(graph: list[dict]) -> None:
        (one,) = [row for row in graph if row["@id"] == entity]
        one[field] = value

    rewrite(folder, edited(metadata(folder), change))
    found = lines(root)
    assert any(entity.removeprefix("#").split("/")[-1] in line and "\n" not in line for line in found), found


def test_a_stranger_a_double_and_a_loose_entity_are_named(root: Path):
    folder = root / "build" / "crate"
    (folder / "weights.bin").write_text("x")
    (root / "data" / "new.csv").write_text("x")
    loose = {"@id": "#loose", "@type": "PropertyValue", "name": "loose", "value": 1}
    rewrite(folder, edited(metadata(folder), lambda graph: graph.extend([loose, loose])))
    assert {(fault.file, fault.field) for fault in faults(root)} == {
        ("weights.bin", "file"),
        ("data/new.csv", "file"),
        ("#loose", "@id"),
    }


def test_a_figure_that_no_notebook_of_the_run_saved_is_named(root: Path):
    crated(root, ran(root, "00_first"), ran(root, "01_small", minute=1, error="ValueError: no", figures=("answers",)))
    assert {(fault.file, fault.field) for fault in faults(root)} == {
        (f"figures/margins.{suffix}", "result") for suffix in ("svg", "png", "json")
    }


def test_a_notebook_that_was_not_run_is_named(root: Path):
    crated(root, ran(root, "00_first"))
    assert ("notebooks/01_small.ipynb", "CreateAction") in {(fault.file, fault.field) for fault in faults(root)}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"@graph": []}', '{"@context": 1, "@graph": []}', '{"@graph": [], "@graph": []}']
)
def test_damaged_metadata_is_one_line(root: Path, text: str):
    (root / "build" / "crate" / METADATA).write_text(text)
    with pytest.raises(ResultError, match=METADATA) as error:
        faults(root)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("graph", [[1], {"a": 1}, [[]], "text"])
def test_a_graph_that_is_none_is_one_line(root: Path, graph):
    whole = metadata(root / "build" / "crate")
    rewrite(root / "build" / "crate", whole | {"@graph": graph})
    with pytest.raises(ResultError, match="list of entities"):
        faults(root)


def test_an_executed_notebook_that_names_a_place_is_named(root: Path):
    file = root / "build" / "crate" / "notebooks" / "00_first.ipynb"
    book = json.loads(file.read_text())
    book["cells"][1]["outputs"][0]["text"] = ["/home/ada/run"]
    file.write_text(json.dumps(book))
    assert ("notebooks/00_first.ipynb", "outputs") in {(fault.file, fault.field) for fault in faults(root)}
