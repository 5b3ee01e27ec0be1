"""The command line: exit codes, one-line errors, and the same JSON on stdout as in the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refusalscope import cli, cli_organisms, selection
from refusalscope.prompts import ContrastSet
from refusalscope.report import card
from refusalscope.results import GuardrailCard, SelectionResult
from refusalscope.rule import Rule
from refusalscope.truth import CARD, read_card

CELLS = [
    {"layer": layer, "position": position, "refusal_score": score, "steering_score": 1.0, "kl_div_score": nats}
    for layer, position, score, nats in [(0, -1, 5.0, 0.0), (1, -2, 2.0, 0.01), (2, -1, -4.0, 0.05), (3, -1, -9.0, 0.3)]
]
RECIPE = """
name = "guarded-9"
kind = "guarded"
seed = 9

[architecture]
hidden_size = 16
intermediate_size = 16
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 8

[base]
steps = 2
batch = 8
rate = 1e-3

[guard]
steps = 1
batch = 8
rate = 1e-3
"""


def run(*words: object):
    """The result of a command: exit code, stdout, stderr; an exception that got through fails the test."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def assert_one_line(result, *said: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if "prompt-forwards;" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("refusalscope: ")
    assert all(word in lines[0] for word in said), lines
    assert result.stdout == ""


@pytest.fixture(scope="module")
def files(prompts, tmp_path_factory) -> Path:
    """A folder with the prompts, a published grid and a recipe."""
    folder = tmp_path_factory.mktemp("files")
    rows = "\n".join(json.dumps(vars(row)) for row in prompts.prompts)
    (folder / "few.jsonl").write_text(rows + "\n", encoding="utf-8")
    (folder / "run" / "select_direction").mkdir(parents=True)
    (folder / "run" / "select_direction" / "direction_evaluations.json").write_text(json.dumps(CELLS), encoding="utf-8")
    (folder / "guarded-9.toml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture
def any_induction(monkeypatch):
    """The selection rule without its induction floor: these tests must not hang on how a guard was trained."""
    for module in (selection, card):
        monkeypatch.setattr(module, "default_rule", lambda _layers: Rule(induce_floor=-1000.0))


@pytest.fixture(scope="module")
def guarded_dir() -> Path:
    return cli_organisms.CHECKOUT / cli_organisms.ORGANISMS / "guarded-0"


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory) -> Path:
    """An organism trained for three steps through the command line."""
    folder = tmp_path_factory.mktemp("trained") / "guarded-9"
    result = run("organisms", "train", files / "guarded-9.toml", "--out", folder, "--quiet")
    assert result.exit_code == 0
    return folder


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["select"],
        ["replay"],
        ["card"],
        ["crate"],
        ["crate", "check"],
        ["reproduce"],
        ["organisms"],
        ["organisms", "train"],
        ["organisms", "verify"],
        ["organisms", "list"],
    ],
)
def test_every_command_has_a_help_text_with_an_example(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Example:\n" in result.stdout
    assert "  refusalscope " in result.stdout


@pytest.mark.parametrize(
    "words", [["replay"], ["replay", "x", "--layers", "0"], ["select", "x"], ["nonsense"], ["card", "x", "--nonsense"]]
)
def test_wrong_usage_exits_with_two(words):
    result = run(*words)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_replay_prints_the_same_choice_as_text_and_as_json(files):
    text, record = run("replay", files / "run", "--layers", 5), run("replay", files / "run", "--layers", 5, "--json")
    found = json.loads(record.stdout)
    assert found["chosen"] == {"layer": 2, "position": -1}
    assert found["mode"] == "winner"
    assert found["ratio"] == found["pf_naive"] / found["pf_used"]
    assert "chosen: layer 2, position -1" in text.stdout


def test_a_missing_run_is_one_line(files):
    assert_one_line(run("replay", files / "nowhere", "--layers", 5), "nowhere", "not found")


def test_select_writes_what_it_prints(guarded_dir, files, tmp_path, any_induction):
    result = run("select", guarded_dir, "--prompts", files / "few.jsonl", "--out", tmp_path / "a" / "b", "--json")
    assert result.exit_code == 0
    written = tmp_path / "a" / "b" / "selection.json"
    assert json.loads(result.stdout) == json.loads(written.read_text(encoding="utf-8"))
    found = SelectionResult.read(written)
    assert (found.mode, found.seed, found.prompts.source) == ("winner", 0, "few.jsonl")
    assert "at most" in result.stderr.splitlines()[0]
    assert [file.name for file in written.parent.iterdir()] == ["selection.json"]


def test_select_says_its_cost_first_then_the_choice(guarded_dir, files, tmp_path, any_induction):
    words = ("--prompts", files / "few.jsonl", "--out", tmp_path, "--mode", "map", "--seed", 3)
    result = run("select", guarded_dir, *words)
    found = SelectionResult.read(tmp_path / "selection.json")
    assert (found.mode, found.seed) == ("map", 3)
    chosen = f"chosen: layer {found.chosen.layer}, position {found.chosen.position}"
    assert result.stdout.splitlines()[0] == chosen
    assert all(word in result.stdout for word in ("near-ties:", "cost:", "bypass:", "wrote"))
    estimate = int(result.stderr.split("at most ")[1].split()[0].replace(",", ""))
    assert found.pf_used + 2 * found.prompts.n["locate"]["restricted"] * 2 <= estimate


def test_nothing_a_prompt_says_reaches_output_or_file(guarded_dir, files, tmp_path, any_induction, prompts):
    result = run("select", guarded_dir, "--prompts", files / "few.jsonl", "--out", tmp_path)
    everything = result.output + (tmp_path / "selection.json").read_text(encoding="utf-8")
    assert not [row.id for row in prompts.prompts if row.text in everything or row.id in everything]


def test_a_selection_in_which_nothing_survives_is_one_line(guarded_dir, files, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "default_rule", lambda _layers: Rule(induce_floor=1000.0))
    result = run("select", guarded_dir, "--prompts", files / "few.jsonl", "--out", tmp_path)
    assert_one_line(result, "No cell", "does not induce")
    assert not list(tmp_path.iterdir())


def test_card_writes_what_it_prints(guarded_dir, files, tmp_path, any_induction):
    words = ("--prompts", files / "few.jsonl", "--out", tmp_path, "--quick")
    result = run("card", guarded_dir, *words, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    stored = GuardrailCard.read(tmp_path)
    assert stored.plan == "quick"
    assert stored.optionality is not None
    text = run("card", guarded_dir, *words, "--placebos", 3)
    stored = GuardrailCard.read(tmp_path)
    assert stored.plan == "own"
    assert stored.optionality.placebo["bypass"].k == 3
    assert text.stdout.split(":")[0] == stored.verdict.state


@pytest.mark.parametrize("command", ["select", "card"])
def test_a_folder_that_cannot_be_written_is_one_line_before_any_work(guarded_dir, files, tmp_path, command):
    (tmp_path / "file").write_text("")
    result = run(command, guarded_dir, "--prompts", files / "few.jsonl", "--out", tmp_path / "file" / "below")
    assert_one_line(result, "cannot be written")
    assert "prompt-forwards" not in result.stderr


@pytest.mark.parametrize(
    ("model", "file", "options", "said"),
    [
        ("guarded", "few.jsonl", [], "did you mean"),
        ("guarded-0", "none.jsonl", [], "none.jsonl"),
        ("guarded-0", "few.jsonl", ["--device", "nonsense"], "--device nonsense"),
        ("guarded-0", "few.jsonl", ["--device", "xpu:9"], "--device xpu:9"),
        ("guarded-0", "few.jsonl", ["--revision", "main"], "revision"),
    ],
)
def test_wrong_inputs_are_one_line(guarded_dir, files, tmp_path, model, file, options, said):
    words = ("--prompts", files / file, "--out", tmp_path, *options)
    result = run("card", guarded_dir.with_name(model), *words)
    assert_one_line(result)
    assert said in result.stderr.lower()


def test_an_interruption_is_one_line_and_exits_with_130(guarded_dir, files, tmp_path, monkeypatch):
    def interrupt(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr(ContrastSet, "read", interrupt)
    result = run("card", guarded_dir, "--prompts", files / "few.jsonl", "--out", tmp_path)
    assert_one_line(result, "interrupted", code=130)


def test_an_error_nobody_anticipated_is_not_hidden(guarded_dir, files, tmp_path, monkeypatch):
    def fail(_path):
        raise ZeroDivisionError

    monkeypatch.setattr(ContrastSet, "read", fail)
    with pytest.raises(ZeroDivisionError):
        run("card", guarded_dir, "--prompts", files / "few.jsonl", "--out", tmp_path)


def test_the_installed_program_exits_with_one_line(files):
    program = Path(sys.executable).with_name("refusalscope")
    done = subprocess.run([program, "replay", files, "--layers", "5"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_organism_name_brings_the_nearest_one():
    assert_one_line(run("organisms", "verify", "guarded_0"), "'guarded-0'")
    assert_one_line(run("organisms", "train", "xyzzy"), "There are: ", "guarded-0")


def test_the_list_names_every_recipe():
    listed = run("organisms", "list").stdout
    assert all(line.split()[0] in cli_organisms.recipes() for line in listed.splitlines())
    assert len(listed.splitlines()) == len(cli_organisms.recipes())


def test_training_writes_a_model_and_its_measured_card(trained):
    from refusalscope.model import load

    assert {CARD, "config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in trained.iterdir()}
    assert read_card(trained).weights == load(trained).origin.weights


def test_training_refuses_a_folder_that_holds_files_and_leaves_them(files, trained, monkeypatch):
    stored = read_card(trained)
    monkeypatch.setattr(cli_organisms, "measured", lambda _recipe, _folder: stored)
    before = (trained / CARD).stat().st_mtime_ns
    assert_one_line(run("organisms", "train", files / "guarded-9.toml", "--out", trained), "not empty", "--force")
    assert (trained / CARD).stat().st_mtime_ns == before
    assert run("organisms", "train", files / "guarded-9.toml", "--out", trained, "--quiet", "--force").exit_code == 0
    assert (trained / CARD).stat().st_mtime_ns > before


def test_verify_agrees_with_the_stored_card_and_fails_on_missed_targets(files, trained):
    result = run("organisms", "verify", files / "guarded-9.toml", "--folder", trained, "--json")
    found = json.loads(result.stdout)
    assert (found["differences"], found["same_weights"]) == ([], True)
    assert found["missed"] == read_card(trained).missed != []
    assert result.exit_code == 1


@pytest.mark.slow
def test_retraining_on_the_same_machine_gives_the_same_weights(files, trained):
    result = run("organisms", "verify", files / "guarded-9.toml", "--folder", trained, "--retrain", "--json")
    found = json.loads(result.stdout)
    assert (found["differences"], found["same_weights"]) == ([], True)


def test_verify_notices_a_card_that_says_something_else(files, trained, monkeypatch):
    stored = read_card(trained)
    monkeypatch.setattr(cli_organisms, "measured", lambda _recipe, _folder: stored)
    measured = {name: one.model_copy(update={"value": 0.5}) for name, one in stored.measured.items()}
    monkeypatch.setattr(
        "refusalscope.truth.read_card", lambda _folder: stored.model_copy(update={"measured": measured})
    )
    result = run("organisms", "verify", files / "guarded-9.toml", "--folder", trained)
    assert result.exit_code == 1
    assert result.stdout.count("differs:") == len(measured)
    assert result.stdout.count("MISSED") == len(stored.missed)


def test_verify_passes_where_nothing_differs_and_no_target_is_missed(files, trained, monkeypatch):
    stored = read_card(trained)
    free = {"at_least": None, "at_most": None}
    easy = stored.model_copy(update={"measured": {k: v.model_copy(update=free) for k, v in stored.measured.items()}})
    monkeypatch.setattr(cli_organisms, "measured", lambda _recipe, _folder: easy)
    assert run("organisms", "verify", files / "guarded-9.toml", "--folder", trained).exit_code == 0


def test_an_organism_without_a_card_is_one_line(files, tmp_path):
    assert_one_line(
        run("organisms", "verify", files / "guarded-9.toml", "--folder", tmp_path), "organism.json", "not found"
    )


def test_a_broken_recipe_is_one_line(tmp_path):
    (tmp_path / "broken.toml").write_text("name = 3\n")
    assert_one_line(run("organisms", "train", tmp_path / "broken.toml", "--out", tmp_path / "x"), "broken.toml")
