from __future__ import annotations

import csv
import io
import json
import math
import socket
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from refusalscope.errors import PromptError
from refusalscope.prompts import ContrastSet, Prompt, passages
from refusalscope.prompts.folding import fold
from refusalscope.prompts.lines import LINE_LIMIT

SPLITS, LABELS = ("locate", "select", "report"), ("restricted", "harmless")
SECRET = "xyzzy"


def row(label="restricted", split="locate", n=0, **fields) -> dict:
    name, other = (f"{one}-{split}-{n}" for one in (label, LABELS[label == "restricted"]))
    base = {"id": name, "label": label, "category": f"c{n}", "cluster": f"t-{split}", "split": split}
    return base | {"text": f"{SECRET} {name}", "pair": other} | fields


GOOD = [row(label, split, n) for split in SPLITS for n in range(2) for label in LABELS]  # 12 rows; line 3 is edited


def as_jsonl(rows) -> bytes:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows).encode("utf-8")


def as_csv(rows) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("utf-8")


def refusal(path, content: bytes | None = None) -> PromptError:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PromptError) as caught:
        ContrastSet.read(path)
    assert caught.value.file == path
    assert str(path) in str(caught.value)
    assert caught.value.fix
    assert caught.value.fix in str(caught.value)
    return caught.value


def edited(**fields) -> list[dict]:
    return [*GOOD[:2], GOOD[2] | fields, *GOOD[3:]]


@pytest.mark.parametrize("encode", [as_jsonl, lambda rows: b"\xef\xbb\xbf" + as_jsonl(rows).replace(b"\n", b"\r\n")])
def test_every_field_of_a_jsonl_row_survives_reading(tmp_path, encode):
    odd = edited(text="líne one\u2028two\u2029three\u0085four\nfive", category='café, "noir"')
    (tmp_path / "a.jsonl").write_bytes(encode(odd))
    read = ContrastSet.read(tmp_path / "a.jsonl")
    assert tuple(read.prompts) == tuple(Prompt(**one) for one in odd)
    assert (read.source, read.split_note) == ("a.jsonl", "given")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_csv_with_excel_mark_quotes_and_line_ends_reads_like_jsonl_and_memory(tmp_path, mark):
    odd = edited(text='say ""two""\nlines, "quoted"\u2028', pair=None)
    (tmp_path / "a.csv").write_bytes(mark + as_csv(odd))
    (tmp_path / "A.JSONL").write_bytes(as_jsonl(odd).removesuffix(b"\n"))
    read, other = ContrastSet.read(tmp_path / "a.csv"), ContrastSet.read(str(tmp_path / "A.JSONL"))
    assert read.prompts == other.prompts == ContrastSet.from_rows(odd).prompts
    assert read.digest == other.digest


FIELD_CASES = {
    "unknown label": ({"label": "Restricted"}, "unknown label 'Restricted'", "restricted, harmless"),
    "unknown split": ({"split": "test"}, "unknown split 'test'", "locate, select, report"),
    "empty text": ({"text": ""}, "text is empty", "remove the row"),
    "invisible text": ({"text": " \u200b\u3000\t\u2060"}, "text is empty", "remove the row"),
    "escaped NUL": ({"text": "a\0b"}, "NUL", "Remove the character"),
    "half a surrogate": ({"text": "a\ud800b"}, "surrogate", "Remove the character"),
    "number": ({"label": 3}, "'label' is a number", "in quotes"),
    "NaN": ({"pair": float("nan")}, "NaN", "leave"),
    "null": ({"category": None}, "'category' is null", "in quotes"),
    "bool": ({"cluster": True}, "'cluster' is true or false", "in quotes"),
    "array": ({"text": [["a"]]}, "'text' is an array", "in quotes"),
    "object": ({"text": {}}, "'text' is an object", "in quotes"),
    "empty id": ({"id": ""}, "id '' is empty", "visible"),
    "spaced category": ({"category": "food "}, "category 'food '", "visible"),
    "invisible cluster": ({"cluster": "t\u200b1"}, r"cluster 't\u200b1'", "visible"),
    "endless label": ({"label": "a" * 10**5}, f"unknown label '{'a' * 57}...'.", "restricted, harmless"),
    "unknown column": ({"lable": "x"}, "unknown column 'lable'", "Did you mean 'label'? The columns are id, label"),
    "duplicate id": ({"id": GOOD[0]["id"]}, "duplicate id 'restricted-locate-0', first on line 1", "its own id"),
    "same text": ({"text": f" {SECRET.upper()}\u3000restr\u200bicted-locate-0"}, "same text as", "Remove one"),
    "no split": ({"split": None}, "has no split", "or none"),
    "unknown pair": ({"pair": "harmless-locate-9"}, "'harmless-locate-9'", "Did you mean 'harmless-locate-"),
    "pair of one label": ({"pair": "restricted-locate-0"}, "is restricted too", "with a harmless one"),
    "pair of itself": ({"pair": "restricted-locate-1"}, "is restricted too", "with a harmless one"),
    "pair across splits": ({"pair": "harmless-report-1"}, "is in split 'report', not 'locate'", "in one split"),
}  # fmt: skip


@pytest.mark.parametrize("case", FIELD_CASES)
def test_a_bad_field_is_refused_alike_in_a_file_and_in_memory(tmp_path, case):
    fields, problem, fix = FIELD_CASES[case]
    content = "".join(json.dumps(one) + "\n" for one in edited(**fields)).encode("ascii")
    error = refusal(tmp_path / "a.jsonl", content)
    with pytest.raises(PromptError) as caught:
        ContrastSet.from_rows(edited(**fields))
    assert error.line == caught.value.line == 3
    assert caught.value.file == "rows"
    if case != "NaN":  # a literal that JSON lacks, refused by the parser
        assert str(error).removeprefix(str(tmp_path / "a.jsonl")) == str(caught.value).removeprefix("rows")
    assert problem in str(error)
    assert problem in str(caught.value)
    assert fix in error.fix
    assert SECRET not in str(error).casefold()


LINE_CASES = {
    "duplicate key": (b'{"id": "a", "label": "harmless", "\\u0069d": "b"}', "key 'id' appears twice", "Keep one"),
    "nested duplicate key": (b'{"id": {"a": 1, "a": 2}}', "key 'a' appears twice", "Keep one"),
    "NaN": (b'{"id": NaN}', "NaN is not JSON", "in quotes"),
    "infinity": (b'{"id": -Infinity}', "-Infinity is not JSON", "in quotes"),
    "overflow": (json.dumps(GOOD[2]).replace('"c1"', "1e999").encode(), "'category' is a number", "in quotes"),
    "long integer": (json.dumps(GOOD[2]).replace('"c1"', "9" * 5000).encode(), "is a number", "in quotes"),
    "broken": (b'{"id": "a",', "not JSON: ", "one object per line"),
    "two objects": (b'{"id": "a"} {"id": "b"}', "Extra data at column 13", "one object per line"),
    "old Mac line end": (b'{"id": "a"}\r{"id": "b"}', "Extra data", "one object per line"),
    "mark inside": (b'\xef\xbb\xbf{"id": "a"}', "BOM", "one object per line"),
    "empty line": (b"", "the line is empty", "Remove it"),
    "not an object": (b'["id"]', "the row is an array", "id, label, category"),
    "missing column": (b'{"id": "a", "label": "harmless", "cluster": "t"}', "'category', 'text'", "category, text"),
    "deep array": (b"[" * 200_000 + b"]" * 200_000, "nested too deeply", "one object per line"),
    "deep object": (b'{"a":' * 150_000 + b"1" + b"}" * 150_000, "nested too deeply", "one object per line"),
    "not UTF-8": ('{"id": "é"}'.encode("latin-1"), f"byte offset {len(as_jsonl(GOOD[:2])) + 8}", "as UTF-8"),
    "NUL byte": (b'{"id": "a\0"}', f"NUL byte at byte offset {len(as_jsonl(GOOD[:2])) + 9}", "Remove it"),
    "too long": (b'"' + b"a" * LINE_LIMIT, f"limit of {LINE_LIMIT} bytes", "one text per line"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINE_CASES)
def test_a_bad_json_line_is_refused_with_its_number(tmp_path, case):
    line, problem, fix = LINE_CASES[case]
    error = refusal(tmp_path / "a.jsonl", as_jsonl(GOOD[:2]) + line + b"\n" + as_jsonl(GOOD[3:]))
    assert error.line == 3
    assert problem in str(error)
    assert fix in error.fix


HEAD, FIRST = as_csv(GOOD[:1]).split(b"\r\n")[:2]
CSV_CASES = {
    "unterminated quote": (HEAD + b'\na,harmless,c,t,locate,"open\nto\nthe end,\n', 2, "end of data", "Close every"),
    "text after a quote": (HEAD + b'\na,harmless,c,t,locate,"x"y,\n', 2, "not CSV", "Close every quote"),
    "too few fields": (HEAD + b"\n" + FIRST + b"\na,harmless\n", 3, "2 fields, the header has 7", "quote texts"),
    "too many": (HEAD + b'\na,harmless,c,t,locate,"two\nlines",,\nb\n', 2, "8 fields", "quote texts"),
    "after a long row": (HEAD + b'\na,harmless,c,t,locate,"two\nlines",\nb\n', 4, "1 fields", "quote texts"),
    "empty line": (HEAD + b"\n\n" + FIRST, 2, "the line is empty", "Remove it"),
    "duplicate column": (b"id,label,id\n", 1, "column 'id' appears twice", "Keep one"),
    "unnamed column": (b"id,,text\n", 1, "has no name", "id, label, category"),
    "blank header": (b"\n" + HEAD, 1, "has no name", "id, label, category"),
    "semicolons": (HEAD.replace(b",", b";"), 1, "unknown column 'id;label", "The columns are id, label"),
    "missing column": (HEAD.replace(b",text", b""), 1, "missing column 'text'", "Add text"),
    "two marks": (b"\xef\xbb\xbf" * 2 + HEAD, 1, r"unknown column '\ufeffid'", "Did you mean 'id'"),
    "header only": (HEAD + b"\n", None, "holds no prompts", "Add restricted and harmless"),
    "empty file": (b"", None, "holds no prompts", "Add restricted and harmless"),
    "empty label": (HEAD + b"\na,,c,t,locate,x,\n", 2, "unknown label ''", "restricted, harmless"),
    "row without end": (HEAD + b"\n" + b'"a\n",' * 500_000, 2, f"limit of {LINE_LIMIT}", "Close every quote"),
    "UTF-16": (as_csv(GOOD).decode().encode("utf-16"), 1, "UTF-16", "Save the file as UTF-8"),
    "UTF-16, no mark": (as_csv(GOOD).decode().encode("utf-16-be"), 1, "UTF-16", "Save the file as UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV_CASES)
def test_a_bad_csv_row_is_refused_with_the_line_where_it_starts(tmp_path, case):
    content, line, problem, fix = CSV_CASES[case]
    error = refusal(tmp_path / "a.csv", content)
    assert error.line == line
    assert problem in str(error)
    assert fix in error.fix


def test_a_bad_path_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "organism.jsonl").write_bytes(as_jsonl(GOOD))
    assert "Did you mean 'organism.jsonl'?" in refusal(tmp_path / "organsim.jsonl").fix
    assert "Check the path" in refusal(tmp_path / "no folder" / "a.csv").fix
    assert ".jsonl, .csv" in refusal(tmp_path / "organism.json").fix
    assert "permissions" in refusal(tmp_path / ("a" * 300 + ".csv")).fix
    (tmp_path / "folder.csv").mkdir()
    assert "Name a file" in refusal(tmp_path / "folder.csv").fix
    assert "holds no prompts" in str(refusal(tmp_path / "empty.jsonl", b""))


def test_labels_missing_from_the_set_or_from_one_split_are_refused(tmp_path):
    unpaired = [one | {"pair": None} for one in GOOD]
    assert "no harmless" in str(refusal(tmp_path / "a.jsonl", as_jsonl(unpaired[::2])))
    bare = [one for one in unpaired if (one["label"], one["split"]) != ("harmless", "select")]
    error = refusal(tmp_path / "a.jsonl", as_jsonl(bare))
    assert (error.line, error.fix) == (5, "Add at least 1 harmless prompt to select.")
    assert "split 'report' has no restricted" in str(refusal(tmp_path / "a.jsonl", as_jsonl(unpaired[:8])))
    leak = [*GOOD[:-1], GOOD[-1] | {"text": GOOD[0]["text"].upper()}]
    error = refusal(tmp_path / "a.jsonl", as_jsonl(leak))
    assert error.line == 12
    assert "on line 1 in split 'locate'" in str(error)


def test_a_line_of_exactly_the_limit_is_read_and_one_byte_more_is_not(tmp_path):
    path, room = tmp_path / "a.jsonl", LINE_LIMIT - len(as_jsonl([GOOD[0] | {"text": ""}])) + 1
    path.write_bytes(as_jsonl([GOOD[0] | {"text": "a" * room}, *GOOD[1:]]).replace(b"\n", b"\r\n"))
    assert len(ContrastSet.read(path).prompts[0].text) == room
    assert refusal(path, path.read_bytes().replace(b"aa", b"aaa", 1)).line == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("filling", [b"a", b'"' + b"a" * 99 + b"\n", None])
def test_an_endless_line_fails_at_once_in_flat_memory(tmp_path, suffix, filling):
    path = tmp_path / f"endless{suffix}"
    with path.open("wb") as handle:
        handle.write(HEAD + b"\n" if suffix == ".csv" else b"")
        if filling is None:
            handle.truncate(2**30)  # a gigabyte of NUL that takes no disk
        for _ in range(64 if filling else 0):
            handle.write(filling * (2**20 // len(filling)))
    tracemalloc.start()
    began = time.monotonic()
    error = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.line == (2 if suffix == ".csv" else 1)
    assert peak < 2**24
    assert time.monotonic() - began < 5


def test_folding_is_idempotent_and_separates_words():
    points = [*range(0xD800), *range(0xF900, 0x10000), *range(0x1D400, 0x1D800), *range(0xE0000, 0xE0200)]
    assert all(fold(once) == once for once in (fold(f"e{chr(point)}\u0301 X") for point in points))
    assert fold("ﬁre\u00adside\nCAFE\u0301\u200b\ufe0f\b ｎｏ①") == fold("FIRESIDE café no1") == "fireside café no1"
    assert len({fold(text) for text in ("fire side", "fireside", "fire-side", "firesides")}) == 4


def as_parquet(rows, path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def as_dataset(rows, path):
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


ODD = edited(text='líne "one"\u2028two\u0085three\nfour', id="007", category="NaN", cluster="null", pair=None)
ODD[3] |= {"pair": None, "text": "None", "category": "1e3"}


def test_the_same_rows_have_the_same_prompts_and_digest_in_every_format(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(ODD))
    (tmp_path / "a.csv").write_bytes(as_csv(ODD))
    paths = [tmp_path / "a.jsonl", tmp_path / "a.csv"]
    paths += [as_parquet(ODD, tmp_path / "a.parquet"), as_dataset(ODD, tmp_path / "a")]
    expected = ContrastSet.from_rows(ODD)
    for path in paths:
        read = ContrastSet.read(path)
        assert read.prompts == expected.prompts
        assert (read.digest, read.source) == (expected.digest, path.name)
    assert ContrastSet.read(as_parquet(GOOD, tmp_path / "b.parquet")).digest != expected.digest


def test_a_table_longer_than_a_batch_is_read_whole_and_in_order(tmp_path):
    rows = [one for n in range(150) for split in SPLITS for label in LABELS for one in [row(label, split, n)]]
    for path in (as_parquet(rows, tmp_path / "a.parquet"), as_dataset(rows, tmp_path / "a")):
        assert ContrastSet.read(path).prompts.ids == tuple(one["id"] for one in rows)
        last = ContrastSet.from_rows([*rows[:-1], rows[-1] | {"pair": None}])
        assert ContrastSet.read(path).digest != last.digest
    long = [*rows[:-1], rows[-1] | {"label": "x"}]
    assert refusal(as_parquet(long, tmp_path / "b.parquet")).line == len(rows)


TABLE_CASES = {  # how the twelve good rows are changed, the row named, what is said, what to do
    "unknown label": (lambda t: column(t, "label", 2, "Restricted"), 3, "unknown label 'Restricted'", "harmless"),
    "empty text": (lambda t: column(t, "text", 2, " \u200b"), 3, "text is empty", "remove the row"),
    "null text": (lambda t: column(t, "text", 2, None), 3, "'text' is null", "in quotes"),
    "empty pair": (lambda t: column(t, "pair", 2, ""), 3, "pair '' is empty", "visible"),
    "long text": (lambda t: column(t, "text", 2, "a" * 2**20 + "a"), 3, f"limit of {LINE_LIMIT}", "per row"),
    "duplicate id": (lambda t: column(t, "id", 2, GOOD[0]["id"]), 3, "first on line 1", "its own id"),
    "same text": (lambda t: column(t, "text", 2, GOOD[0]["text"].upper()), 3, "same text as", "Remove one"),
    "numbers": (lambda t: put(t, "cluster", pyarrow.array(range(12))), 1, "'cluster' is a number", "in quotes"),
    "NaN": (lambda t: put(t, "pair", pyarrow.array([math.nan] * 12)), 1, "'pair' is NaN", "leave it out"),
    "bytes": (lambda t: put(t, "text", pyarrow.array([b"a"] * 12)), 1, "of type bytes", "in quotes"),
    "lists": (lambda t: put(t, "text", pyarrow.array([["a"]] * 12)), 1, "is an array", "in quotes"),
    "no text": (lambda t: t.drop_columns("text"), None, "missing column 'text'; there is id, label", "Add text"),
    "no label": (lambda t: t.drop_columns("label"), None, "missing column 'label'; there is id, cat", "Add label"),
    "other name": (
        lambda t: t.rename_columns({"text": "Text"}), None, "unknown column 'Text'; missing column 'text'", "'text'",
    ),
    "twice": (lambda t: t.append_column("text", t["text"]), None, "column 'text' appears twice", "Keep one"),
    "no rows": (lambda t: t.slice(0, 0), None, "holds no prompts", "Add restricted and harmless"),
    "no columns": (lambda t: t.select([]), None, "has no name", "Name the columns"),
}  # fmt: skip


def column(table, name, index, value):
    values = table[name].to_pylist()
    return put(table, name, pyarrow.array([*values[:index], value, *values[index + 1 :]]))


def put(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize("case", TABLE_CASES)
def test_a_bad_table_is_refused_with_its_row_alike_in_parquet_and_in_a_saved_dataset(tmp_path, case):
    change, line, problem, fix = TABLE_CASES[case]
    table = change(pyarrow.Table.from_pylist(GOOD))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    paths = [tmp_path / "a.parquet"]
    if case not in ("twice", "no columns"):  # which a dataset cannot be saved with
        datasets.Dataset(table).save_to_disk(str(tmp_path / "a"))
        paths.append(tmp_path / "a")
    for path in paths:
        error = refusal(path)
        assert error.line == line
        assert problem in str(error)
        assert fix in error.fix
        assert SECRET not in str(error).casefold()


def test_text_that_is_not_utf8_is_an_error_and_no_replacement_character(tmp_path):
    table = pyarrow.Table.from_pylist(GOOD)
    broken = pyarrow.array([b"caf\xe9", *[f"{n}".encode() for n in range(11)]]).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(put(table, "text", broken), tmp_path / "a.parquet")
    error = refusal(tmp_path / "a.parquet")
    assert "UTF-8" in str(error)
    assert error.line == 1


@pytest.mark.parametrize("spoil", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: as_csv(GOOD)])
def test_a_file_that_is_no_table_is_one_line(tmp_path, spoil):
    path = as_parquet(GOOD, tmp_path / "a.parquet")
    error = refusal(path, spoil(path.read_bytes()))
    assert "no table" in str(error)
    assert "\n" not in str(error)


def test_class_labels_and_shuffled_rows_of_a_saved_dataset_keep_their_meaning(tmp_path):
    made = datasets.Dataset.from_list(GOOD).cast_column("label", datasets.ClassLabel(names=list(LABELS)))
    made.shuffle(seed=1).with_format("numpy", columns=["text"]).save_to_disk(str(tmp_path / "a"))
    read = ContrastSet.read(tmp_path / "a")
    assert read.digest == ContrastSet.from_rows(GOOD).digest
    assert read.prompts.ids != tuple(one["id"] for one in GOOD)
    pyarrow.parquet.write_table(made.data.table, tmp_path / "a.parquet")  # there a label is only a number
    assert "'label' is a number" in str(refusal(tmp_path / "a.parquet"))


def test_a_directory_of_several_datasets_names_them(tmp_path):
    one = datasets.Dataset.from_list(GOOD)
    datasets.DatasetDict(train=one, test=one).save_to_disk(str(tmp_path / "a"))
    error = refusal(tmp_path / "a")
    assert "several datasets (test, train)" in str(error)
    assert len(ContrastSet.read(tmp_path / "a" / "test").prompts) == 12


@pytest.mark.parametrize("name", ["../b/data-00000-of-00001.arrow", "/etc/passwd", "absent.arrow", ".", ""])
def test_a_saved_dataset_reads_no_file_outside_its_directory(tmp_path, name):
    for folder in "ab":
        as_dataset(GOOD, tmp_path / folder)
    state = json.loads((tmp_path / "a" / "state.json").read_text())
    (tmp_path / "a" / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
    assert "not a file of this directory" in str(refusal(tmp_path / "a"))
    assert len(ContrastSet.read(tmp_path / "b").prompts) == 12


def test_a_link_out_of_a_saved_dataset_is_not_followed(tmp_path):
    for folder in "ab":
        as_dataset(GOOD, tmp_path / folder)
    inside = next((tmp_path / "a").glob("*.arrow"))
    inside.unlink()
    inside.symlink_to(tmp_path / "b" / inside.name)
    assert "not a file of this directory" in str(refusal(tmp_path / "a"))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"_data_files": 3}', b"\xff", b"[" * 10**5])
def test_a_saved_dataset_without_a_readable_state_is_one_line(tmp_path, content):
    (as_dataset(GOOD, tmp_path / "a") / "state.json").write_bytes(content)
    assert "does not describe a saved dataset" in str(refusal(tmp_path / "a"))


def test_a_damaged_arrow_file_or_feature_table_is_one_line(tmp_path):
    for name, pattern in (("a", "*.arrow"), ("b", "dataset_info.json")):
        folder = as_dataset(GOOD, tmp_path / name)
        next(folder.glob(pattern)).write_bytes(b"{}nonsense")
        assert "is damaged" in str(refusal(folder))


def test_reading_a_saved_dataset_opens_no_connection_and_runs_no_script_beside_it(tmp_path, monkeypatch):
    def refuse(*_args, **_settings):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder, sentinel = as_dataset(GOOD, tmp_path / "a"), tmp_path / "ran"
    for name in ("a.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(f"import pathlib; pathlib.Path({str(sentinel)!r}).touch()")
    assert len(ContrastSet.read(folder).prompts) == 12
    assert not sentinel.exists()
    exec((folder / "a.py").read_text())  # the sentinel works
    assert sentinel.exists()


@pytest.mark.parametrize(("package", "module"), [("pyarrow", "pyarrow.parquet"), ("datasets", "datasets")])
def test_a_missing_package_is_named_with_how_to_install_it(tmp_path, monkeypatch, package, module):
    path = as_parquet(GOOD, tmp_path / "a.parquet") if package == "pyarrow" else as_dataset(GOOD, tmp_path / "a")
    monkeypatch.setitem(sys.modules, module, None)
    error = refusal(path)
    assert f"needs the package {package!r}" in str(error)
    assert f"pip install {package}" in error.fix
    (tmp_path / "b.csv").write_bytes(as_csv(GOOD))
    assert len(ContrastSet.read(tmp_path / "b.csv").prompts) == 12


def runs(text: str, length: int = 4) -> set[str]:
    """Every run of so many words."""
    words = text.split()
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}


def test_a_result_of_a_users_own_set_names_it_by_digest_and_holds_none_of_its_text(guarded, prompts, tmp_path):
    """A card and a selection of a set read from Parquet, with every file they write."""
    from refusalscope.capture import capture
    from refusalscope.instrument import Instrument
    from refusalscope.locators import mean_difference
    from refusalscope.reading import readout
    from refusalscope.report import PLANS, measure
    from refusalscope.results.facts import selection_result
    from refusalscope.selection import select

    own = ContrastSet.read(as_parquet([vars(one) for one in prompts.prompts], tmp_path / "own.parquet"))
    plan = replace(PLANS["quick"], placebos=3, curve_placebos=2, transfer=True)
    instrument = Instrument("not run", "this test is not about it")
    measure(guarded, own, plan=plan, progress=False, instrument=instrument).save(tmp_path / "card")
    refusal_tokens = readout(guarded, own.locate)
    choice = select(guarded, mean_difference(*capture(guarded, own.locate)), own.select, refusal_tokens)
    selection_result(choice, guarded, own).save(tmp_path / "selection")
    written = [file for file in tmp_path.rglob("*") if file.suffix in (".json", ".html", ".svg", ".csv")]
    assert len(written) >= 3
    secrets = set().union(*(runs(one.text) for one in own.prompts))
    assert len(secrets) > 50
    for file in written:
        content = " ".join(file.read_text(encoding="utf-8").split())
        assert not [secret for secret in secrets if secret in content]
        assert [secret for secret in secrets if secret in f"{content} {own.prompts[5].text}"]  # it would have been seen
    for name in ("card/card.json", "selection/selection.json"):
        assert own.digest in (tmp_path / name).read_text()


# --- passages ---

SHIPPED = Path(__file__).parents[1] / "data" / "prompts" / "neutral.txt"


def test_the_passages_of_a_text_file_are_its_lines_but_comments_and_blank_ones():
    found = passages(SHIPPED)
    written = SHIPPED.read_text(encoding="utf-8").splitlines()
    assert written[0].startswith("# ")
    assert list(found) == written[1:]
    assert passages(str(SHIPPED)) == found


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_passages_are_the_same_with_a_byte_order_mark_and_other_ends_of_lines(tmp_path, mark, end):
    path = tmp_path / "a.txt"
    lines = ["# first", "", "one # two", " \t", "a\u2028b", "#", "  kept as it is  "]
    path.write_bytes(mark + end.join(line.encode() for line in lines))
    assert passages(path) == ("one # two", "a\u2028b", "  kept as it is  ")


BAD_PASSAGES = {
    "empty": (b"", None, "holds no passage", "a passage per line"),
    "comments": (b"# a\n\n#b\n", None, "holds no passage", "a passage per line"),
    "not UTF-8": (b"fine\n\xe9t\xe9\n", 2, "not UTF-8 at byte offset 5", "as UTF-8"),
    "UTF-16": ("# a\nb".encode("utf-16"), 1, "looks like UTF-16", "as UTF-8"),
    "NUL": (b"a\nb\0\n", 2, "NUL byte at byte offset 3", "Remove it"),
    "endless": (b"a\n" + b"b" * (LINE_LIMIT + 1), 2, f"limit of {LINE_LIMIT} bytes", "one text per line"),
}


@pytest.mark.parametrize(("content", "line", "problem", "fix"), BAD_PASSAGES.values(), ids=BAD_PASSAGES)
def test_a_file_without_passages_is_refused_with_its_line_and_what_to_do(tmp_path, content, line, problem, fix):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=problem) as caught:
        passages(path)
    assert (caught.value.file, caught.value.line) == (path, line)
    assert fix in caught.value.fix


def test_a_passage_of_exactly_the_limit_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"b" * LINE_LIMIT + b"\r\n")
    assert [len(text) for text in passages(tmp_path / "a.txt")] == [LINE_LIMIT]


def test_passages_of_no_file_or_of_a_folder_are_one_line(tmp_path):
    for path, said in ((tmp_path / "absent.txt", "No such file"), (tmp_path, "cannot be read")):
        with pytest.raises(PromptError, match=said) as caught:
            passages(path)
        assert caught.value.file == path
        assert "Check the path" in caught.value.fix
