"""The command line's families: which architectures were checked from loading to a card, and what to mind with each."""

from __future__ import annotations

import json

import typer

from refusalscope.cli_options import AsJson


def families(
    as_json: AsJson = False,
) -> None:
    """Lists the families of models that were checked.

    With versions, hook sites and known limits.

    \b
    Example:
      refusalscope families
    """
    from refusalscope.model import families as checked

    rows = checked()
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in rows], indent=1))
        return
    first = rows[0]
    typer.echo(f"checked with transformers {first.transformers} and TransformerLens {first.transformer_lens}")
    for row in rows:
        typer.echo(f"{row.family:<12} {row.architecture:<22} writes at {', '.join(row.writes)}")
        for limit in row.limits:
            typer.echo(f"{'':<12} {limit}")
