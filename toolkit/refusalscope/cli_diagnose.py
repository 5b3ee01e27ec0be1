"""The command line's diagnosis: which way a model does not fit the picture, before anything is measured at length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from refusalscope.errors import ResultError


def diagnose(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A directory in Hugging Face format, or a Hub id.")],
    prompts: Annotated[Path, typer.Argument(metavar="PROMPTS", help="A contrast set, .jsonl or .csv.")],
    neutral: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Neutral text, a passage per line, for the cross-entropy.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    revision: Annotated[str | None, typer.Option(metavar="COMMIT", help="Hub commit, 40 hexadecimal digits.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Number format of the parameters.")
    ] = "float32",
    device: Annotated[str | None, typer.Option(help="Where to run, such as cuda; the CPU unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")] = False,
) -> None:
    """Says whether a model fits the picture, or which of six things is in the way, and what to do about it.

    \b
    Example:
      refusalscope diagnose data/organisms/guarded-0 data/prompts/organism.jsonl
    """
    from refusalscope import cli
    from refusalscope.diagnosis import diagnose as diagnosed
    from refusalscope.diagnosis import estimated_diagnose_cost
    from refusalscope.prompts import ContrastSet

    contrast = ContrastSet.read(prompts)
    texts = None if neutral is None else _passages(neutral)
    chat = cli.loaded(model, revision=revision, dtype=cli.DtypeName(dtype), device=device)
    cli.announce(chat, estimated_diagnose_cost(chat, contrast, neutral=texts))
    found = diagnosed(chat, contrast, neutral=texts, seed=seed)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), allow_nan=False, ensure_ascii=False, indent=1))
        return
    typer.echo(repr(found))
    for one in found.findings:
        typer.echo(f"{one.name}: {one.state}. {one.sentence}" + (f" ({one.reason})" if one.reason else ""))
        for name, number in one.numbers.items():
            typer.echo(f"    {name}: {number!r}")
        if one.state != "clear":
            typer.echo(f"    to do: {one.action}")
    typer.echo(f"cost: {found.pf:,.0f} prompt-forwards")


def _passages(file: Path) -> tuple[str, ...]:
    """Returns the lines of a text file that hold anything. Raises ResultError where none does."""
    try:
        lines = tuple(line for line in file.read_text(encoding="utf-8").split("\n") if line.strip())
    except UnicodeDecodeError as error:
        raise ResultError(f"{file}: is not text in UTF-8. Save it as such.") from error
    if not lines:
        raise ResultError(f"{file}: holds no text. Give a passage per line.")
    return lines
