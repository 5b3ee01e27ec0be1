"""The documents: what they show runs, what they link to exists, and nothing in them belongs to one machine only."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from typer.main import get_command

from audit_cases import PLANTED
from refusalscope.cli import app
from refusalscope.results import GuardrailCard

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "RESPONSIBLE_USE.md", "CHANGELOG.md")
MOST_LINES = 15
FOREIGN = ("/" + "work/", "/" + "root/", "opt/" + "pypi")
EXAMPLES_OF_FOREIGN = ("tests/test_notebooks.py",)  # plants such paths in notebooks to see them reported
PICTURE = re.compile(r"base64,[A-Za-z0-9+/=\s]+")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(document: str, kind: str) -> list[str]:
    """The fenced blocks of one kind in a document."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", document, flags=re.M | re.S)


def missing_links(document: str, root: Path) -> list[str]:
    """Relative link and image targets that are not there."""
    targets = re.findall(r"\]\(([^)\s#]+)", document)
    return [target for target in targets if "://" not in target and not (root / target).exists()]


def foreign(content: str) -> list[str]:
    """Paths and hosts of one machine in a text, pictures apart."""
    return [mark for mark in FOREIGN if mark in PICTURE.sub("", content)]


def tracked() -> list[str]:
    """Names of the files in the repository, new ones included."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_the_readme_example_is_at_most_fifteen_lines():
    (example,) = blocks(text("README.md"), "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= MOST_LINES


def test_the_readme_example_runs_and_saves_a_card(tmp_path):
    (example,) = blocks(text("README.md"), "python")
    (tmp_path / "data").symlink_to(ROOT / "data", target_is_directory=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    asked = [sys.executable, "-c", example]
    done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    card = GuardrailCard.read(tmp_path / "build" / "guarded-0" / "card.json")
    assert card.effect is not None, card.verdict.reasons
    assert re.fullmatch(r"(\d+) of \1 prompts refused before, 0 after\n", done.stdout)


def test_every_command_line_in_the_readme_is_one_the_program_accepts():
    lines = [line for block in blocks(text("README.md"), "sh") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("refusalscope ")]
    assert len(commands) >= 5
    for words in commands:
        accepted(words)
    with pytest.raises(Exception, match="No such option"):
        accepted([*commands[0], "--unheard"])


def accepted(words: list[str]) -> None:
    """Parses a command line without running it; raises what the command line would complain about."""
    command = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]  # pyright: ignore[reportAttributeAccessIssue]
    command.make_context("refusalscope", list(words))


def test_the_readme_recipe_over_a_list_of_models_leaves_a_notebook_and_a_card_for_each(tmp_path):
    (recipe,) = [block for block in blocks(text("README.md"), "sh") if "papermill" in block]
    models = re.search(r"in (.*); do", recipe)
    assert models is not None
    names = [Path(model).name for model in models[1].split()]
    assert len(names) > 1
    (tmp_path / "data").symlink_to(ROOT / "data", target_is_directory=True)
    for folder in ("build", "notebooks"):  # a linked folder would send what is written beside it into the checkout
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "notebooks" / "11_your_model.ipynb", tmp_path / "notebooks")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": path}
    done = subprocess.run(["bash", "-e"], cwd=tmp_path, env=environment, input=recipe, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in names:
        assert (tmp_path / "build" / f"{name}.ipynb").is_file()
        card = GuardrailCard.read(tmp_path / "build" / name)
        assert card.model.name == name
        assert card.verdict.state in ("optional", "partly optional"), card.verdict.reasons


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_relative_link_and_image_exists(document):
    assert missing_links(text(document), ROOT) == []


def test_a_missing_link_is_noticed_and_an_address_is_none(tmp_path):
    (tmp_path / "a.md").touch()
    shown = "[a](a.md) [a part](a.md#part) [b](b.md) ![c](figures/c.png) [d](https://example.org/d)"
    assert missing_links(shown, tmp_path) == ["b.md", "figures/c.png"]


PATHS = ("README.md", "CONTRIBUTING.md", "RESPONSIBLE_USE.md")
PLACES = (".", "toolkit/refusalscope", "notebooks", "tests", "figures")
ENDINGS = ("py", "md", "toml", "csv", "txt", "jsonl", "ipynb", "json", "j2")
MADE = ("build/", "card.json", "card.html", "organism.json", "runs/")  # by a run, or a reader's own


def missing_paths(document: str, root: Path) -> list[str]:
    """Paths in backticks that are not there, below the repository or one of the places that documents speak of."""
    said = re.findall(r"`([^`\s]+)`", re.sub(r"^```.*?^```$", "", document, flags=re.M | re.S))
    paths = [name for name in said if re.fullmatch(r"[\w./*-]+", name) and _names_a_file(name)]
    paths = [name for name in paths if not name.startswith(MADE)]
    return [name for name in paths if not any(any(root.glob(f"{place}/{name}")) for place in PLACES)]


def _names_a_file(name: str) -> bool:
    return name.endswith("/") or name.rpartition(".")[2] in ENDINGS or name.startswith(("data/", "tests/", "toolkit/"))


@pytest.mark.parametrize("document", PATHS)
def test_every_path_in_backticks_exists(document):
    assert missing_paths(text(document), ROOT) == []


def test_a_path_in_backticks_that_is_not_there_is_noticed(tmp_path):
    (tmp_path / "toolkit" / "refusalscope").mkdir(parents=True)
    (tmp_path / "toolkit" / "refusalscope" / "rule.py").touch()
    shown = "`rule.py` `result_files.py` `rs.load` `data/audit/cases.csv` `organisms/` `make test` `build/card.json`"
    assert missing_paths(shown, tmp_path) == ["result_files.py", "data/audit/cases.csv", "organisms/"]


def wrong_counts(document: str, root: Path) -> list[str]:
    """What the document on responsible use counts otherwise than the files do."""
    cases = pd.read_csv(root / "data" / "audit" / "cases.csv")
    edited, all_of = int(cases["positive"].sum()), len(cases)
    along = cases[(cases["positive"] == 1) & ~cases["kind"].str.contains("relapse")]
    true = {
        "Six rules": len(re.findall(r"^\| \*\*C\d\*\*", document, re.M)) == 6,
        f"{edited} edited and {all_of - edited} benign candidates of {cases['family'].nunique()} organisms": True,
        "Weights are edited only along the subspace that a recipe planted": set(along["family"]) <= set(PLANTED),
        "One tampered organism ships": len(list((root / "data" / "organisms").glob("relapsed-*"))) == 1,
    }
    return [said for said, holds in true.items() if not holds or said not in document]


def test_what_responsible_use_counts_is_what_there_is():
    assert wrong_counts(text("RESPONSIBLE_USE.md"), ROOT) == []


WRONG = [("152 edited", "151 edited"), ("Six rules", "Five rules"), ("| **C6**", "")]


@pytest.mark.parametrize(("true", "false"), WRONG)
def test_a_wrong_count_in_responsible_use_is_noticed(true, false):
    assert len(wrong_counts(text("RESPONSIBLE_USE.md").replace(true, false), ROOT)) == 1


def test_no_tampered_checkpoint_is_made_from_a_located_direction():
    source = text("tests/audit_cases.py")
    assert not re.search(r"locat(e\b|ors)|mean_difference|capture", source.split('"""', 2)[2])


def test_every_make_target_the_documents_name_exists():
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), flags=re.M))
    named = {name for document in DOCUMENTS for name in re.findall(r"(?:^|`)make ([a-z-]+)", text(document), re.M)}
    assert named >= {"reproduce", "test", "lab"}
    assert named <= targets


def test_the_dependencies_and_the_readme_table_are_the_same():
    declared = tomllib.loads(text("pyproject.toml"))["project"]["dependencies"]
    table = text("README.md").split("## Dependencies")[1].split("\n\n")[1].splitlines()[2:]
    assert sorted(row.split("|")[1].strip() for row in table) == sorted(re.split(r"[<>=]", d)[0] for d in declared)


def test_every_notebook_is_in_the_index():
    shown = set(re.findall(r"\(notebooks/(\w+)\.ipynb\)", text("README.md")))
    assert shown >= {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


def test_every_recipe_is_in_the_organisms_table():
    section = text("README.md").split("## Organisms")[1].split("\n## ")[0]
    folder = ROOT / "data" / "recipes"
    recipes = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml")}
    assert recipes <= set(re.findall(r"`([\w/-]+)`", section))


def test_no_text_file_belongs_to_one_machine():
    found = {}
    for name in sorted(set(tracked()) - set(EXAMPLES_OF_FOREIGN)):
        try:
            marks = foreign((ROOT / name).read_text(encoding="utf-8"))
        except UnicodeDecodeError:  # not a text file
            continue
        if marks:
            found[name] = marks
    assert found == {}


def test_a_path_of_one_machine_is_noticed():
    assert foreign(f"see {FOREIGN[0]}main, or {FOREIGN[2]}/simple") == [FOREIGN[0], FOREIGN[2]]
    assert foreign(f"data:image/png;base64,AAAA{FOREIGN[0]}AAAA") == []
