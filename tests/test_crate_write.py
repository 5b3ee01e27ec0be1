"""Writing a crate: another library reads it, the same run gives the same bytes, and no machine can be told from it."""

from __future__ import annotations

import getpass
import json
import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate
from typer.testing import CliRunner

from crate_cases import FILES, MACHINE, METADATA, VERSIONS, cell, checkout, crated, described, metadata, ran
from refusalscope.cli import app
from refusalscope.crate import graph, write
from refusalscope.crate.check import check
from refusalscope.crate.given import parameters
from refusalscope.crate.places import paths, portable
from refusalscope.errors import ResultError
from refusalscope.machine import machine_class
from refusalscope.reproduce import reproduce
from refusalscope.results.files import replaced_folder

HOME = "ada_of_the_machine"
HOST = "den-of-ada"
CELL = """import pandas as pd
from matplotlib.figure import Figure
from refusalscope.figures import save
save(Figure(), "{name}", data=pd.DataFrame({{"margin": [1.0]}}), claim="it holds", notebook="{notebook}", seed=3)"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Path:
    """A checkout in the home of somebody with a name, on a machine with a name."""
    monkeypatch.setenv("HOME", str(tmp_path / HOME))
    monkeypatch.setattr(platform, "node", lambda: HOST)
    monkeypatch.setattr(getpass, "getuser", lambda: HOME)
    return checkout(tmp_path / HOME / "checkout")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entity(folder: Path, name: str) -> dict:
    (found,) = [row for row in metadata(folder)["@graph"] if row["@id"] == name]
    return found


def test_another_library_reads_the_crate_back(root: Path):
    folder = crated(root)
    read, stored = ROCrate(folder), {row["@id"]: row for row in metadata(folder)["@graph"]}
    assert {one.id: one.properties() for one in read.get_entities()} == stored
    assert (read.version, read.root_dataset["datePublished"]) == ("1.3", "2026-11-28T05:01:30+00:00")
    action = read.get("#01_small")
    assert (action["instrument"].id, read.get("#machine").type) == ("#notebooks/01_small.ipynb", "IndividualProduct")
    held = {one.id for one in read.data_entities}
    assert held == set(files(folder)) - {METADATA}
    assert {one.id for one in action["result"]} == {name for name in held if "01_small" in name} | {
        f"figures/{name}.{suffix}" for name in ("answers", "margins") for suffix in ("svg", "png", "json")
    }


def test_the_same_run_gives_the_same_bytes_but_for_its_times(root: Path):
    runs = [ran(root, "00_first"), ran(root, "01_small", minute=1)]
    first, again = (files(crated(root, *runs)) for _ in range(2))
    assert first == again
    later = files(crated(root, *(replace(run, started=run.started.replace("T05", "T06"), ended="") for run in runs)))
    assert {name for name in first if first[name] != later[name]} == {METADATA}
    without = re.compile(rb'"(startTime|endTime|datePublished)": "[^"]*"|the run of [^"]*')
    assert without.sub(b"", first[METADATA]) == without.sub(b"", later[METADATA])


def test_nothing_in_the_crate_names_the_machine_its_user_or_a_place_on_it(root: Path):
    failed = ran(
        root, "01_small", minute=1, error=f"OSError: {root}/data/x, {root.parent}/y and /opt/a/b are not there"
    )
    assert HOME in failed.executed.read_text()
    folder = crated(root, ran(root, "00_first"), failed)
    for name, content in files(folder).items():
        assert not [word for word in (HOME, HOST, str(root)) if word.encode() in content], name
    assert entity(folder, "#01_small")["error"] == "OSError: ./data/x, ~/y and …/b are not there"
    (shown,) = json.loads((folder / "notebooks/00_first.ipynb").read_text())["cells"][1]["outputs"]
    assert shown["text"] == ["~/lib/x.py:1: ./data and …/b\n"]
    assert paths(metadata(folder)) == []


def test_only_what_the_repository_or_an_executed_notebook_holds_is_in_the_crate(root: Path):
    folder, pictures = crated(root), ("svg", "png", "json")
    figures = {f"figures/{name}.{suffix}" for name in ("opening", "answers", "margins") for suffix in pictures}
    books = {"notebooks/00_first.ipynb", "notebooks/01_small.ipynb"}
    assert set(files(folder)) == {METADATA, "constraints.txt", "figures/manifest.csv"} | figures | books
    for name in figures:
        assert (folder / name).read_bytes() == (root / name).read_bytes()
    sources = json.loads((root / "notebooks/00_first.ipynb").read_text())["cells"]
    copied = json.loads((folder / "notebooks/00_first.ipynb").read_text())["cells"]
    assert [one["source"] for one in copied] == [one["source"] for one in sources]
    named = {row["localPath"] for row in metadata(folder)["@graph"] if row.get("localPath", "/")[-1] != "/"}
    assert named == books | {name for name in FILES if "cache" not in name and "DS_Store" not in name}


def test_a_failed_notebook_leaves_the_last_line_of_its_error_and_nothing_else(root: Path):
    folder = crated(root, ran(root, "00_first"), ran(root, "01_small", minute=1, error="ValueError: no", figures=()))
    action = entity(folder, "#01_small")
    assert (action["actionStatus"]["@id"], action["error"]) == (
        "http://schema.org/FailedActionStatus",
        "ValueError: no",
    )
    assert "result" not in action
    assert not (folder / "notebooks" / "01_small.ipynb").exists()
    assert "error" not in entity(folder, "#00_first")


def test_seeds_versions_and_machine_are_entities(root: Path):
    folder = crated(root)
    assert entity(folder, "#00_first/SEED") == {
        "@id": "#00_first/SEED",
        "@type": "PropertyValue",
        "name": "SEED",
        "value": 3,
    }
    assert {name: entity(folder, f"#{name}")["version"] for name in VERSIONS} == VERSIONS
    assert entity(folder, "#machine/architecture")["value"] == MACHINE.architecture
    assert parameters(root / "notebooks" / "00_first.ipynb") == {
        "MODEL": "../data/00_first",
        "DOSES": "(0.5, 1.0)",
        "FAST": True,
        "SEED": 3,
    }


def test_a_run_that_cannot_be_described_is_one_line(root: Path):
    runs = [ran(root, "00_first")]
    with pytest.raises(ResultError, match="No notebook was run"):
        graph.crate(root, [], versions=VERSIONS, machine=MACHINE)
    (root / "constraints.txt").unlink()
    with pytest.raises(ResultError, match=r"constraints\.txt"):
        described(root, *runs)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path):
    place = tmp_path / "deep" / "crate"
    with replaced_folder(place) as draft:
        (draft / "a").write_text("first")
    with pytest.raises(KeyError), replaced_folder(place) as draft:  # noqa: PT012
        (draft / "b").write_text("half")
        raise KeyError
    assert files(place) == {"a": b"first"}
    with replaced_folder(place) as draft:
        (draft / "b").write_text("second")
    assert files(place) == {"b": b"second"}
    assert [one.name for one in place.parent.iterdir()] == ["crate"]
    (tmp_path / "file").touch()
    with pytest.raises(ResultError, match="cannot be written"), replaced_folder(tmp_path / "file" / "crate"):
        pass


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("at /usr/lib/x.py line 3", "at …/x.py line 3"),
        ("<td>/mnt/a/b</td>", "<td>…/b</td>"),
        ("file:///mnt/a/b", "…/b"),
        ("\x1b[1m/mnt/a/b", "…/b"),
        (r"at C:\Users\ada\x.py", "at …/x.py"),
        ("https://w3id.org/ro/crate and/or 1/2/3 ../data/x ./a/b ~/c/d", None),
        ("</b></i> data:image/png;base64,iVBOR/a/b+/c/d", None),
    ],
)
def test_absolute_paths_lose_their_place_and_other_slashes_stay(text: str, said: str | None):
    assert portable(text, Path("/nowhere/at/all")) == (said or text)
    assert bool(paths(text)) == (said is not None)
    assert paths(portable(text, Path("/nowhere/at/all"))) == []


def test_the_machine_class_has_a_value_for_everything():
    found = machine_class()
    assert min(found.cores, found.threads) >= 1
    assert all((found.architecture, found.system, found.device))
    assert platform.node() not in repr(found)


# The commands.


def run(*words: object):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_check_exits_with_zero_or_one_and_says_a_line_per_fault(root: Path):
    folder = crated(root)
    whole = run("crate", "check", folder, "--root", root)
    assert (whole.exit_code, whole.stdout) == (0, "2 notebooks, 0 failed, 13 files: all as it says\n")
    assert run("crate", "check", folder, "--root", root, "--json").stdout == "[]\n"
    (folder / "figures" / "opening.png").unlink()
    told = run("crate", "check", folder, "--root", root)
    assert told.exit_code == 1
    assert told.stdout.splitlines() == [
        "figures/opening.png: file: missing. Run `refusalscope reproduce` again.",
        "2 notebooks, 0 failed, 13 files: 1 fault",
    ]
    (fault,) = json.loads(run("crate", "check", folder, "--root", root, "--json").stdout)
    assert (fault["file"], fault["field"]) == ("figures/opening.png", "file")


def test_what_is_no_crate_or_no_checkout_is_one_line_and_wrong_usage_exits_with_two(root: Path, tmp_path: Path):
    folder = crated(root)
    (tmp_path / "empty").mkdir()
    for words in ((tmp_path / "none", root), (tmp_path / "empty", root), (folder, tmp_path / "empty")):
        result = run("crate", "check", words[0], "--root", words[1])
        assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert run("crate", "check").exit_code == 2


def test_notebooks_run_at_once_and_each_has_its_own_figures(tmp_path: Path, capfd):
    root = checkout(tmp_path / "checkout")
    for name, other, figure in (("00_first", "01_small", "opening"), ("01_small", "00_first", "answers")):
        meet = (
            f"from pathlib import Path; import time; Path({name!r}).touch(); until = time.time() + 60\n"
            f"while not Path({other!r}).exists() and time.time() < until: time.sleep(0.05)\n"
            f"assert Path({other!r}).exists(), 'the other notebook did not begin'"
        )
        cells = [cell("SEED = 3", tags=("parameters",)), cell(meet), cell(CELL.format(name=figure, notebook=name))]
        book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
        (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(book))
    said: list[str] = []
    runs, _ = reproduce(root, say=said.append, jobs=2)
    assert [(one.name, one.figures) for one in runs] == [("00_first", ("opening",)), ("01_small", ("answers",))]
    assert [one.detail for one in runs if one.verdict == "failed"] == []
    assert [line[:5] for line in said] == ["[1/2]", "[2/2]"]
    assert "".join(capfd.readouterr()) == "", "kernels wrote between the lines that are said"
    assert all(one.executed.with_suffix(".log").exists() for one in runs)


BROKEN_CLAIM = "import refusalscope as rs\nrs.claim('one is less than nothing', 1 < 0, {'one': 1})"
SAID = "DOES NOT HOLD: one is less than nothing"


@pytest.mark.parametrize("source", [BROKEN_CLAIM, BROKEN_CLAIM.replace("1 < 0", "0 < 1")])
def test_a_claim_that_does_not_hold_is_named_and_fails_though_the_stored_output_says_the_same(source, tmp_path: Path):
    root = checkout(tmp_path / "checkout")
    (root / "notebooks" / "01_small.ipynb").unlink()
    said = SAID if "1 < 0" in source else SAID.replace("DOES NOT HOLD", "Holds")
    shown = {"output_type": "execute_result", "execution_count": 2, "metadata": {}, "data": {"text/plain": [said]}}
    cells = [cell("SEED = 3", tags=("parameters",)), cell(source, shown)]
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    (root / "notebooks" / "00_first.ipynb").write_text(json.dumps(book))
    result = run("reproduce", "--root", root, "--jobs", 1)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("[1/1]")]
    broken = said == SAID
    assert result.exit_code == int(broken)
    assert ("00_first: claim broken" in line, SAID in line) == (broken, broken)


def test_an_interrupt_leaves_the_notebooks_that_have_not_begun(tmp_path: Path):
    root = checkout(tmp_path / "checkout")
    for name in ("00_first", "01_small", "02_late", "03_later"):
        cells = [cell(f"from pathlib import Path; Path({name!r}).touch()")]
        book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
        (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(book))

    def interrupted(line: str):
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt, match="00_first"):
        reproduce(root, say=interrupted, jobs=1)
    assert (root / "notebooks" / "00_first").exists()
    assert not (root / "notebooks" / "03_later").exists()


def test_reproduce_leaves_the_crate_of_its_run(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("REFUSALSCOPE_FIGURES", raising=False)
    root = checkout(tmp_path / "checkout")
    for name, body in {"00_first": CELL.format(name="opening", notebook="00_first"), "01_small": "1 / 0"}.items():
        cells = [cell("SEED = 3", tags=("parameters",)), cell(body)]
        book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
        (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(book))
    told = json.loads(run("reproduce", "--root", root, "--jobs", 1, "--json").stdout)
    assert told["crate"] == write.FOLDER
    first, small = told["notebooks"]
    assert (first["figures"], small["figures"], small["verdict"]) == (["opening"], [], "failed")
    assert first["started"] <= first["ended"] <= small["started"]
    folder = root / write.FOLDER
    assert entity(folder, "#01_small")["error"] == "ZeroDivisionError: division by zero"
    assert {fault.file for fault in check(folder, root)} == {
        f"figures/{name}.{suffix}" for name in ("answers", "margins") for suffix in ("svg", "png", "json")
    }
