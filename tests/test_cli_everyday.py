"""The command line as a new user meets it: every command has an example that parses, every common error is one line."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from typer.main import get_command
from typer.testing import CliRunner

from refusalscope import cli_options, figures
from refusalscope.cli import app
from refusalscope.errors import ModelError, ResultError
from refusalscope.model.source import find_source

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"
SAY_WHERE = {"organisms train", "figures sheet"}  # they write files and say where


def commands(group=None, *names: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by the words that call it."""
    group = group or get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield " ".join((*names, name)), command


COMMANDS = dict(commands())


def run(*words: object):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def assert_one_line(result, *said: str) -> None:
    lines = result.stderr.splitlines()
    assert (result.exit_code, result.stdout, len(lines)) == (1, "", 1), result.output
    assert lines[0].startswith("refusalscope: ")
    assert all(word in lines[0] for word in said), lines


# Help.


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_calls_it_and_parses(name):
    told = run(*name.split(), "--help").stdout
    examples = re.findall(r"^  +refusalscope (.*)$", told.partition("Example:\n")[2], re.M)
    assert examples
    for words in map(shlex.split, examples):
        assert " ".join(words).startswith(name)
        COMMANDS[name].make_context(name, words[len(name.split()) :])


def test_an_example_with_an_unknown_option_would_not_parse():
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["card"].make_context("card", ["x", "--prompts", "y", "--out", "z", "--unheard"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_offers_json_unless_all_it_says_is_where_it_wrote(name):
    told = run(*name.split(), "--help").stdout
    assert ("--json" in told) is (name not in SAY_WHERE)


def test_the_first_page_says_what_exit_codes_mean():
    told = " ".join(run("--help").stdout.split())
    assert "Exit codes: 0 done, 1 not done or a check failed (one line says why), 2 wrong usage" in told


def test_the_version_is_the_installed_one():
    assert run("--version").stdout == f"refusalscope {version('refusalscope')}\n"


@pytest.mark.parametrize("words", [["families", "--json"], ["organisms", "list", "--json"]])
def test_json_is_all_there_is_on_stdout(words):
    result = run(*words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(json.loads(result.stdout)) >= 5


# Wrong names.


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["crad"], "card"),
        (["figures", "chek"], "check"),
        (["organisms", "lst"], "list"),
        (["card", "x", "--quik"], "--quick"),
        (["replay", "x", "--layer", "3"], "--layers"),
    ],
)
def test_a_wrong_command_or_option_brings_the_nearest_one_and_exits_with_two(words, meant):
    result = run(*words)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1), result.stderr
    assert meant in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nonsense"], "See refusalscope --help."),
        (["card"], "MODEL"),
        (["select", "x", "--prompts", "y"], "--out"),
        (["select", "x", "--prompts", "y", "--out", "z", "--mode", "wnner"], "'winner', 'map'"),
        (["card", "x", "--prompts", "y", "--out", "z", "--dtype", "float"], "float32"),
        (["card", "x", "--prompts", "y", "--out", "z", "--seed", "-1"], "--seed"),
        (["card", "x", "--prompts", "y", "--out", "z", "--placebos", "many"], "'--placebos'"),
        (["card", "x", "--prompts", "y", "--out", "z", "--quick", "--adaptive"], "give one of them"),
        (["card", "x", "--prompts", "y", "--budget", "5m", "--quick"], "fits a plan of its own"),
        (["estimate", "x", "--share", "2"], "--share"),
        (["replay", "x", "--layers", "0"], "See refusalscope replay --help."),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it_and_exits_with_two(words, said):
    result = run(*words)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1), result.stderr
    assert said in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_does_in_whole(name):
    *group, command = name.split()
    line = next(line for line in run(*group, "--help").stdout.splitlines() if line.startswith(f"  {command} "))
    assert not line.endswith("..."), line


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["estimate", DATA / "organisms/guarded0"], "guarded-0"),
        (["estimate", DATA / "organisms/guarded-0", "--prompts", DATA / "prompts/organsm.jsonl"], "organism.jsonl"),
        (["organisms", "verify", "gaurded-0"], "guarded-0"),
    ],
)
def test_a_wrong_path_or_name_is_one_line_with_the_nearest_there_is(words, meant):
    assert_one_line(run(*words), f"{meant}'", "Did you mean")


def test_a_hub_that_cannot_be_reached_is_an_error_of_ours_whatever_library_the_client_uses(monkeypatch):
    def unreachable(*_, **__):
        raise type("ConnectError", (HTTPError,), {})("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(ModelError, match=r"guarded-0: no such directory, and the Hub did not serve .*ConnectError"):
        find_source("guarded-0", revision=None)


# Folders and disks.


def full(*_: object, **__: object):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile:
    """A file on a disk that has no room left."""

    def __enter__(self):
        return self

    def __exit__(self, *_: object):
        return None

    write = full


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_a_folder_where_even_an_administrator_cannot_write_is_refused_before_the_work():
    assert os.access("/proc", os.W_OK) or os.geteuid(), "permissions alone would tell"
    with pytest.raises(ResultError, match=r"/proc/out: cannot be written \(.*, in /proc\)"):
        cli_options.check_folder(Path("/proc/out"))


def test_a_folder_that_can_be_made_passes_and_nothing_is_left_in_it(tmp_path):
    cli_options.check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["select", "card", "train"])
def test_a_full_disk_is_one_line_before_any_work(command, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_options.tempfile, "TemporaryFile", lambda **_: FullFile())
    out = tmp_path / "out"
    rest = ("--prompts", DATA / "prompts/organism.jsonl", "--out", out)
    words = ("organisms", "train", "guarded-0", "--out", out) if command == "train" else (command, "x", *rest)
    assert_one_line(run(*words), str(out), "No space left on device")


def test_a_disk_that_fills_while_a_sheet_is_written_is_one_line_and_the_old_sheet_stays(tmp_path, monkeypatch):
    for name in ("figures", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    sheet = tmp_path / "figures" / "README.md"
    sheet.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    assert_one_line(run("figures", "sheet", "--root", tmp_path), "README.md", "No space left on device")
    assert sheet.read_text() == "old"
    assert not [file for file in sheet.parent.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")])
def test_a_disk_that_fills_while_an_organism_is_written_is_one_line(tmp_path, monkeypatch, error):
    def fail(*_: object):
        raise error

    monkeypatch.setattr("refusalscope.organisms.training.train", lambda *_, **__: None)
    monkeypatch.setattr("refusalscope.organisms.training.write", fail)
    out = tmp_path / "out"
    assert_one_line(run("organisms", "train", "guarded-0", "--out", out, "--quiet"), str(out), "No space left")


def test_an_error_of_the_disk_anywhere_is_one_line_with_the_file(monkeypatch):
    def fail(*_: object, **__: object):
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere.csv")

    monkeypatch.setattr(figures, "read_manifest", fail)
    monkeypatch.setattr("refusalscope.figure_check.read_manifest", fail)
    assert_one_line(run("figures", "check", "--root", ROOT), "somewhere.csv: No space left on device")
