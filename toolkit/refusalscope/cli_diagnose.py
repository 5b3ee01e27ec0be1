"""The command line's diagnosis: which way a model does not fit the picture, before anything is measured at length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from refusalscope.cli_options import (
    AsJson,
    Device,
    Dtype,
    DtypeName,
    ModelName,
    PromptFile,
    Revision,
    Seed,
    System,
    TemplateFile,
    announce,
    loaded,
)


def diagnose(
    model: ModelName,
    prompts: PromptFile,
    neutral: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Neutral text, a passage per line, for the cross-entropy.")
    ] = None,
    seed: Seed = 0,
    revision: Revision = None,
    dtype: Dtype = DtypeName.float32,
    device: Device = None,
    template: TemplateFile = None,
    system: System = None,
    as_json: AsJson = False,
) -> None:
    """Says what keeps a model from being measured.

    Whether it fits the picture of a refusal direction, or which of six things is in the way, and what to do about it.

    \b
    Example:
      refusalscope diagnose data/organisms/guarded-0 --prompts data/prompts/organism.jsonl
    """
    from refusalscope.diagnosis import diagnose as diagnosed
    from refusalscope.diagnosis import estimated_diagnose_cost
    from refusalscope.prompts import ContrastSet, passages

    contrast = ContrastSet.read(prompts)
    texts = None if neutral is None else passages(neutral)
    chat = loaded(model, revision=revision, dtype=dtype, device=device, chat=(template, system))
    announce(chat, estimated_diagnose_cost(chat, contrast, neutral=texts))
    found = diagnosed(chat, contrast, neutral=texts, seed=seed)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), allow_nan=False, ensure_ascii=False, indent=1))
        return
    typer.echo(repr(found))
    for one in found.findings:
        typer.echo(f"{one.name}: {one.state}. {one.sentence}" + (f" ({one.reason})" if one.reason else ""))
        for name, number in one.numbers.items():
            typer.echo(f"    {name}: {number}")
        if one.state != "clear":
            typer.echo(f"    to do: {one.action}")
    typer.echo(f"cost: {found.pf:,.0f} prompt-forwards")
