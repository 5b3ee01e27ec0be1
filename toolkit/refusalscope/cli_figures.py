"""The command line's figures: do they, their records, their manifest and their notebooks belong together."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from refusalscope.cli_options import AsJson, say
from refusalscope.errors import ResultError

app = typer.Typer(
    help="Checks and captions the figures.\n\nAgainst the records of their numbers.\n\n"
    "\b\nExample:\n  refusalscope figures check",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

Root = Annotated[Path, typer.Option("--root", metavar="DIR", help="The checkout.")]


@app.command()
def check(
    root: Root = Path("."),
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Also run every notebook again; figures/ stays as it is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Reads every figure's files again. Exit code 1 when one is missing, damaged, orphaned or has drifted.

    One line per fault: the file, the field, what is wrong, what to do. Without --recompute no notebook runs.

    \b
    Example:
      refusalscope figures check
    """
    from refusalscope import figure_check
    from refusalscope.figure_sheet import counted
    from refusalscope.figures import read_manifest

    faults = figure_check.check(_checkout(root))
    if recompute:
        faults += figure_check.recompute(root.resolve(), say=say)
    if as_json:
        typer.echo(json.dumps([asdict(fault) for fault in faults], ensure_ascii=False, indent=1))
    else:
        for fault in faults:
            typer.echo(str(fault))
        total = counted(len(read_manifest(root / "figures")), "figure")
        typer.echo(f"{total}: {counted(len(faults), 'fault') if faults else 'each as its record says'}")
    if faults:
        raise typer.Exit(1)


@app.command()
def sheet(root: Root = Path(".")) -> None:
    """Writes figures/README.md, every picture with a caption.

    Captions are built from the records: claim, notebook, n and seed, in the order of the notebooks.

    \b
    Example:
      refusalscope figures sheet
    """
    from refusalscope.figure_sheet import SHEET, contact_sheet
    from refusalscope.results.files import write_text

    path = _checkout(root) / "figures" / SHEET
    write_text(path, contact_sheet(root))
    typer.echo(f"wrote {path}")


def _checkout(root: Path) -> Path:
    """The root, when it has figures. Raises ResultError otherwise."""
    if not (root / "figures").is_dir():
        raise ResultError(f"{root}: no folder figures in it. Run this from a checkout, or give --root.")
    return root
