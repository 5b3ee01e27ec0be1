"""The rules of DESIGN section 7 for a stored notebook, and for the folder of figures that notebooks fill."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from refusalscope.claims import BROKEN
from refusalscope.errors import ResultError
from refusalscope.figures import read_manifest, read_record

MAX_PARAMETERS, MAX_CELLS, MAX_LINES = 5, 12, 15
MAX_BYTES, MAX_BYTES_WITH_FIGURE = 300_000, 400_000
PICTURE = re.compile(r"base64,[A-Za-z0-9+/=\s]+")
PATH = re.compile(r"(?<![\w.:<-])(?<!:/)/(?:work|home|root|Users|tmp|var|opt|usr)\b|\b[A-Z]:\\\\?\w")
LINK_TARGETS = re.compile(r"\]\([^)\s]*\)|<https?://[^>\s]*>|^\s*\[[^\]]+\]:\s*\S+|\bhttps?://[^\s)>]+", re.M)
WOBBLE = re.compile(r"\d\.\d|\b\d+[eE][-+]?\d+\b")
VACUOUS = re.compile(r"\bat 0x[0-9a-f]+|<Figure size|^None$")
UNCHECKED = re.compile(r"NBVAL_|PYTEST_VALIDATE_IGNORE_OUTPUT")
UNCHECKED_TAGS = re.compile(r"nbval-|raises-exception|pytest_validate_ignore_output")
PROGRESS = "application/vnd.jupyter.widget-view+json"
SUFFIXES = ("svg", "png", "json")


def hygiene(notebook: dict) -> list[str]:
    """Returns what the notebook (nbformat 4, as JSON) does wrong, in words; empty when it keeps every rule."""
    return [problem for rule in RULES for problem in rule(notebook)]


def text(source: str | list[str]) -> str:
    """The text of a cell or of an output, which nbformat stores whole or in lines."""
    return source if isinstance(source, str) else "".join(source)


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook: dict) -> Iterator[tuple[int, dict]]:
    """The number of the code cell, from one, with each of its outputs."""
    return ((number, one) for number, cell in enumerate(code_cells(notebook), 1) for one in cell["outputs"])


def statements(cell: dict) -> list[ast.stmt] | None:
    """The statements of a cell; None when it is not plain Python."""
    try:
        return ast.parse(text(cell["source"])).body
    except SyntaxError:
        return None


def results(cell: dict) -> list[dict]:
    """The data that a cell returned or displayed, progress bars apart."""
    shown = [one["data"] for one in cell["outputs"] if one["output_type"] in ("execute_result", "display_data")]
    return [data for data in shown if PROGRESS not in data]


def plain_results(cell: dict) -> list[str]:
    """The plain text of what a cell returned or displayed: what nbval compares."""
    return [text(data["text/plain"]) for data in results(cell) if "text/plain" in data]


def _parameters(notebook: dict) -> Iterator[str]:
    tagged = ["parameters" in cell["metadata"].get("tags", []) for cell in code_cells(notebook)]
    if tagged != [True] + [False] * (len(tagged) - 1):
        yield "the first code cell, and no other, must have the tag `parameters`"
        return
    body = statements(code_cells(notebook)[0]) or []
    if not 1 <= len(body) <= MAX_PARAMETERS or not all(map(_is_parameter, body)):
        yield f"the parameters must be one to {MAX_PARAMETERS} assignments of constants to names in capitals"


def _is_parameter(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return False
    name, value = statement.targets[0], statement.value
    constant = not any(isinstance(node, ast.Name | ast.Call | ast.Lambda | ast.Attribute) for node in ast.walk(value))
    return isinstance(name, ast.Name) and name.id.isupper() and constant


def _length(notebook: dict) -> Iterator[str]:
    cells = code_cells(notebook)
    if not 1 <= len(cells) <= MAX_CELLS:
        yield f"{len(cells)} code cells: one to {MAX_CELLS}"
    for number, cell in enumerate(cells, 1):
        if (lines := len(text(cell["source"]).splitlines())) > MAX_LINES:
            yield f"code cell {number} has {lines} lines: at most {MAX_LINES}"
        if not text(cell["source"]).strip():
            yield f"code cell {number} is empty"


def _sentences(notebook: dict) -> Iterator[str]:
    for number, cell in enumerate(code_cells(notebook), 1):
        body = statements(cell)
        if body is None:
            yield f"code cell {number} is not plain Python: no magics, no shell"
        elif any(map(_defines, ast.walk(ast.Module(body, [])))):
            yield f"code cell {number} defines a function or a class: it belongs in the package"


def _defines(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr):
        return isinstance(node.value, ast.Lambda)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _one_clean_run(notebook: dict) -> Iterator[str]:
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts {counts}: run all, in order, from a fresh kernel"
    for number, output in outputs(notebook):
        if output["output_type"] == "error":
            yield f"code cell {number} ends in an error"


def _results(notebook: dict) -> Iterator[str]:
    cells = code_cells(notebook)
    if sum(bool(plain_results(cell)) for cell in cells) * 2 < len(cells):
        yield "fewer than half of the code cells have a result in plain text: nbval would compare nothing"
    for number, cell in enumerate(cells, 1):
        body = statements(cell)
        answers = results(cell) or [one for one in cell["outputs"] if one.get("name") == "stdout"]
        if body and isinstance(body[-1], ast.Expr) and not answers:
            yield f"code cell {number} ends in an expression that shows nothing"
        if any(VACUOUS.search(result) for result in plain_results(cell)):
            yield f"code cell {number} has a vacuous result: an address, a bare figure or None"


def _compared(notebook: dict) -> Iterator[str]:
    for number, cell in enumerate(code_cells(notebook), 1):
        tags = cell["metadata"].get("tags", [])
        if UNCHECKED.search(text(cell["source"])) or any(
            UNCHECKED_TAGS.match(tag.lower().replace("_", "-")) for tag in tags
        ):
            yield f"code cell {number} tells nbval not to compare it"
        printed = [text(one["text"]) for one in cell["outputs"] if one.get("name") == "stdout"]
        if any(WOBBLE.search(result) for result in plain_results(cell) + printed):
            yield f"code cell {number} has decimals in plain text, which can wobble: digits belong in HTML"


def _claims(notebook: dict) -> Iterator[str]:
    for number, cell in enumerate(code_cells(notebook), 1):
        said = plain_results(cell) + [text(one["text"]) for one in cell["outputs"] if one.get("name") == "stdout"]
        if broken := [line.strip() for line in "\n".join(said).splitlines() if BROKEN in line]:
            yield f"code cell {number} stores a claim that its numbers do not bear out: {broken[0]}"


def _prose(notebook: dict) -> Iterator[str]:
    for number, cell in enumerate(notebook["cells"], 1):
        if cell["cell_type"] == "markdown" and (
            found := re.search(r".*\d.*", LINK_TARGETS.sub("", text(cell["source"])))
        ):
            yield f"cell {number} has a digit in prose: {found[0].strip()[:60]!r}"


def _asks_and_answers(notebook: dict) -> Iterator[str]:
    """Prose first and last, and between code cells; the cell after the parameters may follow at once."""
    said = [cell["cell_type"] == "markdown" and bool(text(cell["source"]).strip()) for cell in notebook["cells"]]
    if not said or not said[0] or not said[-1]:
        yield "it must begin with a question in Markdown and end with an answer in Markdown"
    seen, silent = 0, False
    for cell, prose in zip(notebook["cells"], said, strict=True):
        if cell["cell_type"] == "code":
            seen += 1
            if silent and seen != 2:
                yield f"code cells {seen - 1} and {seen} have no prose between them"
        silent = not prose and (silent or cell["cell_type"] == "code")


def _portable(notebook: dict) -> Iterator[str]:
    for number, output in outputs(notebook):
        if found := PATH.search(PICTURE.sub("", _texts(output))):
            yield f"code cell {number} shows a path of this machine, {found[0]}"


def _texts(output: dict) -> str:
    """All texts of an output, one below the other."""
    texts = [
        value for key, value in output.get("data", {}).items() if isinstance(value, str | list) and "image/p" not in key
    ]
    return "\n".join(map(text, [*texts, output.get("text", ""), *output.get("traceback", [])]))


def _small(notebook: dict) -> Iterator[str]:
    for number, cell in enumerate(code_cells(notebook), 1):
        stored = json.dumps(cell["outputs"], ensure_ascii=False)
        limit = MAX_BYTES_WITH_FIGURE if PICTURE.search(stored) else MAX_BYTES
        if (size := len(stored.encode())) > limit:
            yield f"code cell {number} stores {size} bytes of output: at most {limit}"


Rule = Callable[[dict], Iterator[str]]
RULES: tuple[Rule, ...] = (
    _parameters,
    _length,
    _sentences,
    _one_clean_run,
    _results,
    _compared,
    _claims,
    _prose,
    _asks_and_answers,
    _portable,
    _small,
)


def gallery(folder: Path) -> list[str]:
    """Returns what is wrong with a folder of figures: files without a row, rows without files, records that differ."""
    try:
        rows = read_manifest(folder)
    except ResultError as error:
        return [str(error)]
    names = [row["figure"] for row in rows]
    found = [] if names == sorted(set(names)) else ["the rows of the manifest are not sorted, or one is double"]
    stems = {file.stem for file in folder.iterdir() if file.suffix[1:] in SUFFIXES}
    found += [f"{name}: files without a row in the manifest" for name in sorted(stems - set(names))]
    return found + [f"{row['figure']}: {problem}" for row in rows for problem in _figure(folder, row)]


def _figure(folder: Path, row: dict[str, str]) -> Iterator[str]:
    files = {suffix: folder / f"{row['figure']}.{suffix}" for suffix in SUFFIXES}
    if missing := [suffix for suffix, file in files.items() if not file.is_file() or not file.stat().st_size]:
        yield f"no {', '.join(missing)}"
        return
    if hashlib.sha256(files["json"].read_bytes()).hexdigest() != row["record_sha256"]:
        yield "the record is not the one whose digest the manifest has"
    try:
        record = read_record(files["json"])
    except ResultError as error:
        yield str(error)
        return
    told = {"figure": record.figure, "claim": record.claim, "notebook": record.notebook}
    told["seed"] = "" if record.seed is None else str(record.seed)
    if wrong := [key for key, value in told.items() if row[key] != value]:
        yield f"the record and the manifest differ in {', '.join(wrong)}"
