"""The main job: every notebook in a fresh kernel, its claims and figures compared with the stored ones."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import nbformat

from refusalscope.claims import BROKEN
from refusalscope.errors import ResultError
from refusalscope.figures import FOLDER_VARIABLE, compare, read_record

Verdict = Literal["claims hold", "claim broken", "claims changed", "failed"]
MOST_AT_ONCE = 4


@dataclass(frozen=True)
class Run:
    """One executed notebook.

    Attributes:
        verdict: whether every claim holds, and every text output equals the stored one.
        claims: how many text outputs were compared.
        detail: the claim that does not hold, or the first cell that changed or failed, or empty.
        executed: where the executed copy lies.
        started, ended: UTC, in ISO 8601, to the second.
        figures: what it saved while it ran, by name.
    """

    name: str
    verdict: Verdict
    claims: int
    seconds: float
    detail: str
    executed: Path
    started: str = ""
    ended: str = ""
    figures: tuple[str, ...] = ()


def reproduce(
    root: Path, *, say: Callable[[str], None] = print, fresh: Path | None = None, jobs: int | None = None
) -> tuple[list[Run], dict[str, str]]:
    """Executes ``notebooks/*.ipynb`` under a repository root; returns the runs and what became of each figure.

    ``jobs`` notebooks run at once: by default one a core, four at most. Executed copies go to ``build/notebooks``, and
    what their kernels log; figures go to ``figures/``, or to the folder ``fresh``, which leaves those of the repository
    as they are. A figure is ``same numbers``, ``drifted: …`` or ``new``. Says one line per notebook, as they end.
    Raises ResultError when there are no notebooks.
    """
    notebooks = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    if not notebooks:
        raise ResultError(f"{root / 'notebooks'}: no notebooks to run. Run this from a checkout of the repository.")
    before = {path.stem: read_record(path) for path in sorted((root / "figures").glob("*.json"))}
    out = root / "build" / "notebooks"
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = (fresh or root / "figures").resolve()
    runs = []
    with _saving_to(folder), _workers(jobs or min(os.cpu_count() or 1, MOST_AT_ONCE)) as pool:
        begun = [pool.submit(_watched, notebook, out / notebook.name, folder) for notebook in notebooks]
        for number, ended in enumerate(as_completed(begun), 1):
            run = ended.result()
            say(
                f"[{number}/{len(notebooks)}] {run.name}: {run.verdict}, {run.seconds:.0f} s"
                + (f" ({run.detail})" if run.detail else "")
            )
            runs.append(run)
    return sorted(runs, key=lambda run: run.name), dict(_figures(folder, before))


@contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that run notebooks; whatever goes wrong, an interrupt too, those not begun are not run."""
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _saving_to(folder: Path) -> Iterator[None]:
    """Tells the kernels that start inside where figures go."""
    before = os.environ.get(FOLDER_VARIABLE)
    os.environ[FOLDER_VARIABLE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(FOLDER_VARIABLE)
        os.environ |= {} if before is None else {FOLDER_VARIABLE: before}


def _watched(notebook: Path, copy: Path, folder: Path) -> Run:
    """Runs a notebook and adds when that was and which figures it saved, whatever others save at the same time."""
    started, before = _now(), _stamps(folder)
    with _errors_to(copy.with_suffix(".log")):
        run = _executed(notebook, copy)
    saved = sorted(name for name, stamp in _stamps(folder).items() if before.get(name) != stamp)
    own = (name for name in saved if read_record(folder / f"{name}.json").notebook == notebook.stem)
    return replace(run, started=started, ended=_now(), figures=tuple(own))


@contextmanager
def _errors_to(log: Path) -> Iterator[None]:
    """What is written to stderr inside, by the kernels that start there too, goes to a file beside the copy."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a record is written again, even with the same content."""
    found = {path.stem: path.stat() for path in folder.glob("*.json")}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


def _executed(notebook: Path, copy: Path) -> Run:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    began = time.perf_counter()
    stored = nbformat.read(notebook, as_version=4)
    try:
        papermill.execute_notebook(
            str(notebook), str(copy), cwd=str(notebook.parent), kernel_name="python3", progress_bar=False
        )
    except (papermill.PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
        return Run(notebook.stem, "failed", 0, time.perf_counter() - began, str(error).strip().splitlines()[-1], copy)
    again = nbformat.read(copy, as_version=4)
    then, now = _claims(stored), _claims(again)
    if broken := [f"code cell {cell}: {line}" for cell, text in now.items() for line in _broken(text)]:
        return Run(notebook.stem, "claim broken", len(now), time.perf_counter() - began, "; ".join(broken), copy)
    changed = [cell for cell in sorted({*then, *now}) if then.get(cell) != now.get(cell)]
    detail = f"code cell {changed[0]} says something else than the stored output" if changed else ""
    verdict: Verdict = "claims changed" if changed else "claims hold"
    return Run(notebook.stem, verdict, len(now), time.perf_counter() - began, detail, copy)


def _broken(text: str) -> list[str]:
    """The lines of a result that state a claim which the numbers do not bear out, stored or not."""
    return [line.strip() for line in text.splitlines() if BROKEN in line]


def _claims(notebook: nbformat.NotebookNode) -> dict[int, str]:
    """Returns the text of every result, by the number of its code cell among the notebook's own."""
    cells = [
        c for c in notebook.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])
    ]
    return {
        number: output.data["text/plain"]
        for number, cell in enumerate(cells, 1)
        for output in cell.outputs
        if output.output_type in ("execute_result", "display_data") and "text/plain" in output.data
    }


def _figures(folder: Path, before: dict) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.json")):
        drift = compare(before[path.stem], read_record(path)) if path.stem in before else None
        yield path.stem, "new" if drift is None else f"drifted: {drift[0]}" if drift else "same numbers"


def table(runs: list[Run], figures: dict[str, str], root: Path) -> str:
    """Returns the closing table: a verdict per notebook and per figure, with the paths written."""
    lines = ["", f"{'notebook':<20} {'verdict':<16} {'claims':>6} {'seconds':>8}  executed copy"]
    lines += [
        f"{run.name:<20} {run.verdict:<16} {run.claims:>6} {run.seconds:>8.0f}  {run.executed.relative_to(root)}"
        for run in runs
    ]
    lines += ["", f"{'figure':<32} {'numbers':<16}  written"]
    lines += [f"{name:<32} {state:<16}  figures/{name}.svg .png .json" for name, state in figures.items()]
    return "\n".join([*lines, "", "manifest: figures/manifest.csv"])
