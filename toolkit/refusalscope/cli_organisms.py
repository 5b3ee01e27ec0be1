"""The command line's organisms: trained from a recipe, measured against their declared truth, verified afterwards."""

from __future__ import annotations

import difflib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refusalscope.cli_options import AsJson, check_folder
from refusalscope.errors import RecipeError, ResultError
from refusalscope.progress import quiet
from refusalscope.results.files import write_text

if TYPE_CHECKING:
    from refusalscope.organisms.recipe import Recipe
    from refusalscope.truth import OrganismCard

RECIPES, ORGANISMS = Path("data/recipes"), Path("data/organisms")
CHECKOUT = Path(__file__).resolve().parents[2]

app = typer.Typer(
    help="Trains, verifies and lists tiny models.\n\nOrganisms: models whose answer is known.\n\n"
    "\b\nExample:\n  refusalscope organisms verify guarded-0",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A recipe such as guarded-0 or families/llama, or a .toml file.",
    ),
]


@app.command()
def train(
    name: Name,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: data/organisms/ beside the recipes.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds files already.")] = False,
) -> None:
    """Trains an organism and measures it. Writes a model directory, and organism.json into it.

    \b
    Example:
      refusalscope organisms train guarded-0 --out build/guarded-0
    """
    from refusalscope.truth import CARD

    file, recipe = found_recipe(name)
    folder = out or default_folder(file, recipe.name)
    if not force and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResultError(f"{folder}: exists and is not empty. Give another --out, or --force.")
    check_folder(folder)
    card = trained_and_measured(recipe, folder, progress=not quiet)
    write_text(folder / CARD, card.model_dump_json(indent=1) + "\n")
    typer.echo(repr(card))
    typer.echo(f"wrote {folder}")


@app.command()
def verify(
    name: Name,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the organism is, unless in data/organisms/.")
    ] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train it anew, elsewhere, and measure that.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measures an organism again. Exit code 1 when it differs from its organism.json or misses a target.

    Retrained weights are the same bit for bit on one machine only, so there only their measured values must agree.

    \b
    Example:
      refusalscope organisms verify guarded-0
    """
    from refusalscope.truth import differences, read_card

    file, recipe = found_recipe(name)
    place = folder or default_folder(file, recipe.name)
    stored = read_card(place)
    again = retrained(recipe) if retrain else measured(recipe, place)
    differing = differences(stored, again, exact=not retrain)
    if as_json:
        typer.echo(json.dumps(_record(again, stored, differing), allow_nan=False, indent=1))
    else:
        _print(again, stored, differing)
    if differing or again.missed:
        raise typer.Exit(1)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Lists the recipes, and which are trained and measured here.

    \b
    Example:
      refusalscope organisms list
    """
    from refusalscope.truth import CARD

    rows = []
    for stem, file in sorted(recipes().items()):
        _, recipe = found_recipe(stem)
        folder = default_folder(file, recipe.name)
        state = "measured" if (folder / CARD).is_file() else "trained" if folder.is_dir() else "not trained"
        rows.append({"name": stem, "kind": recipe.kind, "seed": recipe.seed, "state": state})
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        typer.echo(f"{row['name']:<16} {row['kind']:<10} seed {row['seed']}  {row['state']}")


def recipes() -> dict[str, Path]:
    """Returns the recipes by name, ``families/llama`` too: the checkout's, then those below the working directory."""
    places = (CHECKOUT / RECIPES, RECIPES)
    return {file.relative_to(place).with_suffix("").as_posix(): file for place in places for file in _toml(place)}


def _toml(place: Path) -> list[Path]:
    return sorted([*place.glob("*.toml"), *place.glob("*/*.toml")])


def found_recipe(name: str) -> tuple[Path, Recipe]:
    """Returns the file and the recipe a name means. Raises RecipeError with the nearest name there is."""
    from refusalscope.organisms.recipe import read_recipe

    known = recipes()
    file = Path(name) if name.endswith(".toml") else known.get(name)
    if file is None:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(sorted(known)) or 'none'}."
        raise RecipeError(f"No recipe {name!r}. {hint}")
    return file, read_recipe(file)


def default_folder(file: Path, name: str) -> Path:
    """Returns the place in data/organisms/ that is the recipe's in data/recipes/, or below the working directory."""
    for place in file.parents[:2]:
        if place.name == RECIPES.name:
            return place.parent / ORGANISMS.name / file.parent.relative_to(place) / name
    return ORGANISMS / name


def trained_and_measured(recipe: Recipe, folder: Path, *, progress: bool) -> OrganismCard:
    """Trains an organism, writes its directory, loads it from there as any other model is, and measures it."""
    from safetensors import SafetensorError

    from refusalscope.organisms.training import train as trained
    from refusalscope.organisms.training import write

    model = trained(recipe, progress=progress)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(model, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResultError(f"{folder}: cannot be written ({reason}).") from error
    with quiet(progress):
        return measured(recipe, folder)


def measured(recipe: Recipe, folder: Path) -> OrganismCard:
    """Returns the card of the organism in a folder, measured now."""
    from refusalscope.model import load
    from refusalscope.truth import measure_organism

    return measure_organism(load(folder), recipe)


def retrained(recipe: Recipe) -> OrganismCard:
    """Returns the card of an organism trained anew in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as place:
        return trained_and_measured(recipe, Path(place) / recipe.name, progress=True)


def _record(again: OrganismCard, stored: OrganismCard, differing: list[str]) -> dict[str, object]:
    return {
        "name": again.name,
        "same_weights": again.weights == stored.weights,
        "differences": differing,
        "missed": again.missed,
        "measured": {name: {**one.model_dump(), "met": one.met} for name, one in again.measured.items()},
    }


def _print(again: OrganismCard, stored: OrganismCard, differing: list[str]) -> None:
    typer.echo(f"{again.name}: {again.truth}")
    for name, one in again.measured.items():
        interval = "no interval" if one.low is None or one.high is None else f"[{one.low:.3f}, {one.high:.3f}]"
        target = f", target {one.target}" if one.target else ""
        typer.echo(f"  {'met' if one.met else 'MISSED':<7}{name}: {one.value:.3f} {interval}, n = {one.n}{target}")
    typer.echo(f"weights: {'the same' if again.weights == stored.weights else 'others'} as when it was measured first")
    for line in differing:
        typer.echo(f"differs: {line}")
