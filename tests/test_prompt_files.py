from __future__ import annotations

import csv
import io
import json
import time
import tracemalloc

import pytest

from refusalscope.errors import PromptError
from refusalscope.prompts import ContrastSet, Prompt
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
    "too long": (b'"' + b"a" * LINE_LIMIT, f"limit of {LINE_LIMIT} bytes", "one prompt per line"),
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
