"""The command line. Anticipated errors are one line on stderr, no traceback."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from refusalscope import (
    cli_audit,
    cli_crate,
    cli_diagnose,
    cli_estimate,
    cli_families,
    cli_figures,
    cli_organisms,
    cli_reproduce,
)
from refusalscope.cli_errors import OneLine
from refusalscope.cli_options import (
    AsJson,
    Device,
    Dtype,
    DtypeName,
    ModelName,
    OutFolder,
    PromptFile,
    Revision,
    Seed,
    System,
    TemplateFile,
    announce,
    check_folder,
    loaded,
    propose_dtype,
    spent,
)

PLAIN = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False, "no_args_is_help": True}


def _say_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"refusalscope {metadata.version('refusalscope')}")
        raise typer.Exit
    return asked


app = typer.Typer(
    cls=OneLine,
    help="Measures how optional the refusal guardrail of an open-weight chat model is.\n\n"
    "Exit codes: 0 done, 1 not done or a check failed (one line says why), 2 wrong usage, 130 interrupted.\n\n"
    "\b\nExample:\n  refusalscope card data/organisms/guarded-0 --prompts data/prompts/organism.jsonl --out build/card",
    **PLAIN,
)
app.add_typer(cli_crate.app, name="crate")
app.add_typer(cli_figures.app, name="figures")
app.add_typer(cli_organisms.app, name="organisms")


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Say the version and exit.", callback=_say_version)
    ] = False,
) -> None:
    """The program itself; its help stands with the app."""


class ModeName(StrEnum):
    """How much of the grid a selection fills."""

    winner = "winner"
    map = "map"


@app.command()
def select(
    model: ModelName,
    prompts: PromptFile,
    out: OutFolder,
    mode: Annotated[ModeName, typer.Option(help="winner: what the choice needs; map: every cell.")] = ModeName.winner,
    seed: Seed = 0,
    revision: Revision = None,
    dtype: Dtype = DtypeName.float32,
    device: Device = None,
    template: TemplateFile = None,
    system: System = None,
    as_json: AsJson = False,
) -> None:
    """Chooses one located candidate. The rule's scores, near-ties and cost go into selection.json.

    \b
    Example:
      refusalscope select data/organisms/guarded-0 --prompts data/prompts/organism.jsonl --out build/select
    """
    check_folder(out)
    import refusalscope as rs
    from refusalscope.bounds import selection_bounds
    from refusalscope.results.facts import selection_result
    from refusalscope.results.files import to_json

    contrast = rs.ContrastSet.read(prompts)
    chat = loaded(model, revision=revision, dtype=dtype, device=device, chat=(template, system))
    announce(chat, 2 * len(contrast.locate) + selection_bounds(chat, contrast.select, mode=mode.value)[1])
    readout = rs.readout(chat, contrast.locate)
    candidates = rs.locate.mean_difference(*rs.capture(chat, contrast.locate))
    choice = rs.select(chat, candidates, contrast.select, readout, mode=mode.value, seed=seed)
    result = selection_result(choice, chat, contrast)
    path = result.save(out)
    if as_json:
        typer.echo(to_json(result), nl=False)
        return
    typer.echo(f"chosen: layer {choice.cell.layer}, position {choice.cell.position}")
    for kind, found in choice.estimates.items():
        typer.echo(f"  {kind}: {found[choice.cell]}")
    ties = [tie for tie in result.near_ties if (tie.layer, tie.position) != choice.cell]
    spelled = (f"layer {tie.layer}, position {tie.position} ({tie.share:.0%})" for tie in ties)
    typer.echo(f"near-ties: {'; '.join(spelled) or 'none'}")
    typer.echo(f"cost: {spent(choice.pf_used, choice.pf_naive)}, {choice.seconds:.1f} seconds")
    typer.echo(f"wrote {path}")


app.command()(cli_audit.audit)
app.command()(cli_diagnose.diagnose)
app.command()(cli_estimate.estimate)
app.command()(cli_families.families)


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder of the refusal_direction repository.")],
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model that was measured.")],
    as_json: AsJson = False,
) -> None:
    """Chooses again on a published grid. No model is needed; counts what either search would cost.

    \b
    Example:
      refusalscope replay runs/qwen-1_8b-chat --layers 24
    """
    from refusalscope.replay import replay as replayed

    found = replayed(run, layers)
    record = {
        "chosen": found.chosen._asdict(),
        "mode": "winner",
        "pf_used": found.pf_used,
        "pf_naive": found.pf_naive,
        "ratio": found.pf_naive / found.pf_used,
    }
    if as_json:
        typer.echo(json.dumps(record, allow_nan=False))
        return
    typer.echo(f"chosen: layer {found.chosen.layer}, position {found.chosen.position}")
    typer.echo(f"cost: {spent(found.pf_used, found.pf_naive)}, {record['ratio']:.1f} times fewer")


@app.command()
def card(
    model: ModelName,
    prompts: PromptFile,
    out: OutFolder = Path("build/card"),
    seed: Seed = 0,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time to spend, such as 15m: the plan is fitted to it.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small family and few placebos: seconds, not minutes.")
    ] = False,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="Attacks that adapt to this model come on top: for hardened guardrails.")
    ] = False,
    placebos: Annotated[
        int | None, typer.Option(min=1, help="Random subspaces beside the worst case, instead of the plan's.")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = DtypeName.float32,
    device: Device = None,
    template: TemplateFile = None,
    system: System = None,
    as_json: AsJson = False,
) -> None:
    """Measures a guardrail end to end. The verdict and its numbers go into card.json and card.html.

    \b
    Example:
      refusalscope card data/organisms/guarded-0 --prompts data/prompts/organism.jsonl --out build/card --quick
    """
    if quick and adaptive:
        raise typer.BadParameter("--quick is a small family and --adaptive a large one: give one of them.")
    if budget is not None and (quick or adaptive or placebos is not None):
        raise typer.BadParameter("--budget fits a plan of its own: leave --quick, --adaptive and --placebos out.")
    check_folder(out)
    import refusalscope as rs
    from refusalscope.report import PLANS, estimated_measure_cost, measure, time_budget

    spend = None if budget is None else time_budget(budget)  # loading counts
    from refusalscope.results.files import to_json

    contrast = rs.ContrastSet.read(prompts)
    chat = loaded(model, revision=revision, dtype=dtype, device=device, chat=(template, system))
    plan = PLANS["quick" if quick else "adaptive" if adaptive else "full"]
    plan = plan if placebos is None else replace(plan, placebos=placebos)
    propose_dtype(chat)
    if spend is None:
        announce(chat, estimated_measure_cost(chat, contrast, plan=plan))
    found = measure(chat, contrast, plan=plan, seed=seed, budget=spend)
    found.save(out)
    if as_json:
        typer.echo(to_json(found), nl=False)
        return
    typer.echo(f"{found.verdict.state}: {found.verdict.sentence}")
    for reason in found.verdict.reasons:
        typer.echo(f"  {reason}")
    for line in found.missing:
        typer.echo(f"  not measured: {line}")
    typer.echo(f"cost: {found.pf:,.0f} prompt-forwards, {found.seconds:.1f} seconds")
    typer.echo(f"wrote {out / 'card.json'} and {out / 'card.html'}")


app.command()(cli_reproduce.reproduce)


def main() -> None:
    """Runs the command line."""
    app()
