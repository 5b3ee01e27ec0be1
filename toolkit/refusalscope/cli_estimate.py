"""The command line's estimate: what a model will cost to measure, from its configuration, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from refusalscope.cli_options import AsJson, Dtype, DtypeName, Revision


def estimate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A directory with a config.json, a GGUF file, or a Hub id.")
    ],
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="A contrast set; sizes are assumed without one.")
    ] = None,
    dtype: Dtype = DtypeName.float32,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Rows per forward.")] = None,
    device: Annotated[str, typer.Option(help="Whose speed is measured, such as cuda.")] = "cpu",
    flops: Annotated[
        float | None, typer.Option("--flops", min=1.0, help="Operations per second at best, instead of measuring.")
    ] = None,
    share: Annotated[
        float | None, typer.Option("--share", min=1e-6, max=1.0, help="Share of that speed to count on.")
    ] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Says what a model will take to measure.

    Prompt-forwards, operations, memory and time of locating, selecting and a card, from the configuration alone.

    \b
    Example:
      refusalscope estimate data/organisms/guarded-0 --prompts data/prompts/organism.jsonl
    """
    import torch

    from refusalscope.forecast import forecast
    from refusalscope.machine import SHARE, Machine, measured_machine
    from refusalscope.prompts import ContrastSet

    contrast, spelled = None if prompts is None else ContrastSet.read(prompts), getattr(torch, dtype.value)
    if flops is None:
        machine = measured_machine(device=device, dtype=spelled, share=share)
    else:
        machine = Machine(float(flops), share or SHARE)
    made = forecast(model, machine, prompts=contrast, dtype=spelled, batch_size=batch, revision=revision)
    if as_json:
        typer.echo(json.dumps(made.to_dict(), allow_nan=False, indent=1))
        return
    for line in made.lines():
        typer.echo(line)
