"""The command line's crates: is what the record of a run says still so."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from refusalscope.cli_options import AsJson

app = typer.Typer(
    help="Checks the record that reproduce leaves of a run.\n\n\b\nExample:\n  refusalscope crate check build/crate",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.callback()
def program() -> None:
    """The commands about crates; their help stands with the app."""


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The crate, such as build/crate.")],
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="The checkout it speaks of.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Reads a crate again. Exit code 1 when a file or a field is missing, or something is not as it says.

    One line per fault: the file or entity, the field, what is wrong, what to do. Models, data and the package are
    compared with those of the checkout.

    \b
    Example:
      refusalscope crate check build/crate
    """
    from refusalscope.crate.check import check as faults_of
    from refusalscope.crate.check import counts
    from refusalscope.figure_sheet import counted

    faults = faults_of(folder, root)
    if as_json:
        typer.echo(json.dumps([asdict(fault) for fault in faults], ensure_ascii=False, indent=1))
    else:
        for fault in faults:
            typer.echo(str(fault))
        ran, failed, held = counts(folder, root)
        state = counted(len(faults), "fault") if faults else "all as it says"
        typer.echo(f"{counted(ran, 'notebook')}, {failed} failed, {counted(held, 'file')}: {state}")
    if faults:
        raise typer.Exit(1)
