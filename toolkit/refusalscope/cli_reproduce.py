"""The command line's main job: run every notebook, say what held, leave a record."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from refusalscope.cli_options import AsJson, say


def reproduce(
    root: Annotated[Path, typer.Option(metavar="DIR", help="The checkout to run in.")] = Path("."),
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Notebooks at once.", show_default="one a core, four at most")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Runs every notebook and says which claims and numbers held.

    Each in a fresh kernel; figures/ is written again, and build/crate, a record of the run. Exit code 1 when anything
    failed, changed or drifted.

    \b
    Example:
      refusalscope reproduce
    """
    from refusalscope import reproduce as runner
    from refusalscope.crate.write import write

    place = root.resolve()
    runs, figures = runner.reproduce(place, say=say if as_json else lambda line: print(line, flush=True), jobs=jobs)
    if not as_json:
        typer.echo(runner.table(runs, figures, place))
    crate = write(place, runs).relative_to(place).as_posix()
    if as_json:
        rows = [asdict(run) | {"executed": run.executed.relative_to(place).as_posix()} for run in runs]
        typer.echo(json.dumps({"notebooks": rows, "figures": figures, "crate": crate}, indent=1))
    else:
        typer.echo(f"record of the run: {crate}")
    drifted = any(state.startswith("drifted") for state in figures.values())
    if drifted or any(run.verdict != "claims hold" for run in runs):
        raise typer.Exit(1)
