"""Result files: closed on write and on read, whole or not there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

import results_by_hand as by_hand
from refusalscope.errors import ResultError
from refusalscope.results import GuardrailCard, SelectionResult
from refusalscope.results.files import to_json, to_record, write_text
from refusalscope.results.parts import MAX_CELLS, Score
from refusalscope.results.schema import PUBLISHED, schema

SCHEMAS = Path(__file__).parents[1] / "data" / "schema"
LONG = [0.1] * 4096


def _changed(tmp_path: Path, change: Callable[[dict], object]) -> Path:
    """A file with a selection result in which something was changed."""
    record = to_record(by_hand.selection())
    change(record)
    file = tmp_path / "selection.json"
    file.write_text(json.dumps(record), encoding="utf-8")
    return file


def test_a_selection_reads_back_as_it_was_written(tmp_path):
    saved = by_hand.selection().save(tmp_path / "made" / "on the way")
    assert SelectionResult.read(saved) == by_hand.selection()
    assert [file.name for file in saved.parent.iterdir()] == ["selection.json"]


def test_a_card_reads_back_as_it_was_written(tmp_path):
    by_hand.card().save(tmp_path)
    assert GuardrailCard.read(tmp_path) == GuardrailCard.read(tmp_path / "card.json") == by_hand.card()


def test_the_json_that_is_laid_out_for_reading_holds_the_record():
    assert json.loads(to_json(by_hand.selection())) == to_record(by_hand.selection())


def test_an_unchanged_file_is_read(tmp_path):
    assert SelectionResult.read(_changed(tmp_path, lambda record: None)) == by_hand.selection()


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("direction", lambda r: r.update(direction=LONG)),
        ("model.path", lambda r: r["model"].update(path="/home/someone")),
        ("cells.0.vector", lambda r: r["cells"][0].update(vector=LONG)),
        ("cells.0.bypass.values", lambda r: r["cells"][0]["bypass"].update(values=LONG)),
        ("prompts.texts", lambda r: r["prompts"].update(texts=["how"])),
        ("prompts.n.test", lambda r: r["prompts"]["n"].update(test=3)),
        ("versions.notes", lambda r: r["versions"].update(notes="x")),
    ],
)
def test_an_unknown_key_is_refused_on_read_by_name(tmp_path, key, change):
    with pytest.raises(ResultError, match=r"selection\.json.*" + key.replace(".", r"\.")):
        SelectionResult.read(_changed(tmp_path, change))


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("seconds", lambda r: r.update(seconds=LONG)),
        ("cells.0.bypass.interval", lambda r: r["cells"][0]["bypass"].update(interval=LONG)),
        ("chosen.layer", lambda r: r["chosen"].update(layer=LONG)),
        ("readout.phrases", lambda r: r["readout"].update(phrases=["no"] * 4096)),
        ("readout.longest", lambda r: r["readout"].update(longest=LONG)),
        ("baseline.restricted.note", lambda r: r["baseline"]["restricted"].update(note=str(LONG))),
        ("cells", lambda r: r.update(cells=[r["cells"][0] | {"layer": n} for n in range(MAX_CELLS + 1)])),
    ],
)
def test_a_long_list_of_numbers_is_refused_on_read_wherever_it_hides(tmp_path, key, change):
    with pytest.raises(ResultError, match=r"selection\.json.*" + key.replace(".", r"\.")):
        SelectionResult.read(_changed(tmp_path, change))


def test_a_long_list_of_numbers_is_refused_on_write_and_nothing_is_written(tmp_path):
    result = by_hand.selection()
    object.__setattr__(result, "seconds", LONG)
    with pytest.raises(ResultError, match="seconds"):
        result.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_is_refused_when_a_result_is_built():
    with pytest.raises(ValidationError, match="direction"):
        SelectionResult(**vars(by_hand.selection()), direction=LONG)


def test_a_nan_is_refused_when_built_on_write_and_on_read(tmp_path):
    with pytest.raises(ValidationError, match="finite"):
        Score(float("nan"), None, 3, None, "t")
    result = by_hand.selection()
    object.__setattr__(result, "seconds", float("nan"))
    with pytest.raises(ResultError):
        result.save(tmp_path)
    with pytest.raises(ResultError, match="seconds"):
        SelectionResult.read(_changed(tmp_path, lambda record: record.update(seconds=float("inf"))))


def test_a_double_key_is_refused(tmp_path):
    file = tmp_path / "selection.json"
    file.write_text(to_json(by_hand.selection()).replace('"seed": 0', '"seed": 0, "seed": 0', 1), encoding="utf-8")
    with pytest.raises(ResultError, match=r"selection\.json.*'seed' occurs twice"):
        SelectionResult.read(file)


def test_a_choice_that_was_never_evaluated_is_refused(tmp_path):
    with pytest.raises(ResultError, match="layer 3, position -1 is not among the cells"):
        SelectionResult.read(_changed(tmp_path, lambda record: record["chosen"].update(layer=3)))
    with pytest.raises(ResultError, match="occurs twice"):
        SelectionResult.read(_changed(tmp_path, lambda record: record["cells"].append(record["cells"][0])))


@pytest.mark.parametrize("without", ["optionality", "interval"])
def test_a_verdict_without_an_interval_of_the_worst_case_is_refused(without, tmp_path):
    record = to_record(by_hand.card())
    if without == "optionality":
        record["optionality"] = None
    else:
        record["optionality"]["bypass"]["interval"] = None
    (tmp_path / "card.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ResultError, match="optional without an interval of the worst case"):
        GuardrailCard.read(tmp_path)


def test_a_verdict_beside_a_failed_instrument_check_is_refused(tmp_path):
    record = to_record(by_hand.card())
    record["instrument_check"]["state"] = "failed"
    (tmp_path / "card.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ResultError, match="optional although the instrument check failed"):
        GuardrailCard.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{", b"[" * 100_000, None])
def test_a_file_that_is_no_result_is_named_in_the_error(tmp_path, content):
    file = tmp_path / "selection.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ResultError, match=r"selection\.json"):
        SelectionResult.read(file)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_is_interrupted_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch, step):
    file = tmp_path / "a.json"
    write_text(file, "old")

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(ResultError, match=r"a\.json: cannot be written \(No space left on device\)"):
            write_text(file, "new")
    assert file.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
    write_text(file, "new")
    assert file.read_text() == "new"


def test_a_folder_that_cannot_be_made_is_a_result_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="cannot be written"):
        by_hand.selection().save(tmp_path / "file" / "below")


# --- the published schemas ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_schema_is_the_one_that_is_checked(name):
    stored = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    assert stored == schema(PUBLISHED[name]), "run `make schema`"


@pytest.mark.parametrize(("name", "made"), [("card", by_hand.card), ("selection", by_hand.selection)])
def test_a_stored_result_meets_its_published_schema_and_a_changed_one_does_not(name, made):
    check = Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))
    record = to_record(made())
    assert check.is_valid(record), next(check.iter_errors(record))
    assert not check.is_valid(record | {"direction": [0.1, 0.2]}), "unknown keys are refused"
    assert not check.is_valid({key: value for key, value in record.items() if key != "seed"})


def test_no_published_schema_holds_a_list_that_is_not_bounded():
    """A closed schema of bounded tables has no room for a direction: every list of numbers has a fixed length."""
    for name in PUBLISHED:
        lists = [*_lists(json.loads((SCHEMAS / name).read_text(encoding="utf-8")))]
        assert lists
        assert all("maxItems" in one for one in lists), name
        numbers = [one for one in lists if "number" in json.dumps(one.get("items", one.get("prefixItems")))]
        assert all(one["maxItems"] <= 2 for one in numbers if "$ref" not in json.dumps(one)), name


def _lists(node: object):
    if isinstance(node, dict):
        if node.get("type") == "array":
            yield node
        for value in node.values():
            yield from _lists(value)
    elif isinstance(node, list):
        for value in node:
            yield from _lists(value)
