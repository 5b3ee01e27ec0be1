"""The command line's audit: was refusal edited out of a checkpoint, compared with the one it comes from?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refusalscope.cli_options import AsJson, Device, Dtype, DtypeName, OutFolder, Seed, check_folder, say
from refusalscope.errors import PromptError

PROMPTS = Path("data/prompts")
CHECKOUT = Path(__file__).resolve().parents[2]
ORGANISM, EVERYDAY = "organism.jsonl", "everyday.jsonl"


def audit(
    reference: Annotated[str, typer.Argument(metavar="REF", help="The checkpoint the candidate is said to come from.")],
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="The checkpoint to audit.")],
    out: OutFolder,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="A contrast set; the checkout's own unless given."),
    ] = None,
    reference_digest: Annotated[
        str | None, typer.Option(metavar="SHA256", help="Of the reference's weight files, as its maker published it.")
    ] = None,
    seed: Seed = 0,
    dtype: Dtype = DtypeName.float32,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Says whether refusal was edited out of a checkpoint.

    Clean, edited or cannot tell, with every number it stands on; they go into audit.json. The exit code
    is 0 for any of the three states.

    \b
    Example:
      refusalscope audit data/organisms/guarded-0 downloads/guarded-0 --out build/audit
    """
    check_folder(out)
    import torch

    from refusalscope.audit import Loading
    from refusalscope.audit import audit as audited
    from refusalscope.prompts import ContrastSet
    from refusalscope.results.audit import audit_result
    from refusalscope.results.files import to_json

    contrast = ContrastSet.read(prompts or default_prompts(reference, candidate))
    loading = Loading(device=device, dtype=getattr(torch, dtype.value))
    say(f"comparing {Path(candidate).name} with {Path(reference).name}: weights first, then each model in turn")
    found = audited(
        reference, candidate, prompts=contrast, reference_digest=reference_digest, seed=seed, loading=loading
    )
    result = audit_result(found)
    path = result.save(out)
    if as_json:
        typer.echo(to_json(result), nl=False)
        return
    typer.echo(found.claim)
    if found.state == "cannot tell":
        typer.echo(f"to do: {found.action}")
    for one in found.evidence:
        clean = "" if one.clean is None else f", benign ones {one.clean[0]:.3g} to {one.clean[1]:.3g}"
        limit = "" if one.threshold is None else f", threshold {one.threshold:.3g}"
        number = str(one.number) if one.number.interval else f"{one.number.value:.3g}"
        typer.echo(f"  {one.says}: {number}{clean}{limit}")
    if found.labels.change is not None:
        typer.echo(f"  change of the refusal rate: {found.labels.change}")
    typer.echo(
        f"cost: {found.pf:,.0f} prompt-forwards; edited is said at a false-positive rate of {found.declared:.0%}"
    )
    typer.echo(f"wrote {path}")


def default_prompts(reference: str, candidate: str) -> Path:
    """Returns the checkout's contrast set: the organisms' where both are organisms, the everyday one otherwise.

    Raises PromptError where there is no checkout to look in.
    """
    name = ORGANISM if all(map(_is_organism, (reference, candidate))) else EVERYDAY
    for place in (CHECKOUT / PROMPTS, PROMPTS):
        if (place / name).is_file():
            return place / name
    raise PromptError(f"no {name} in {PROMPTS}, here or beside the package.", fix="Give --prompts FILE.")


def _is_organism(folder: str) -> bool:
    """Whether a directory's whole vocabulary is the fictional one; padding tokens beside it do not count."""
    import json

    from refusalscope.organisms.tokens import tokenizer

    file = Path(folder) / "tokenizer.json"
    try:
        held = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(held, dict) and set(tokenizer().get_vocab()) <= set(held) | _added(file)


def _added(file: Path) -> set[str]:
    import json

    added = json.loads(file.read_text(encoding="utf-8")).get("added_tokens") or []
    return {str(one.get("content")) for one in added if isinstance(one, dict)}
