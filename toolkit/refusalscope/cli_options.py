"""What the commands share: options, what is said on stderr, and loading a model as the options ask."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refusalscope.errors import ModelError, ResultError
from refusalscope.reprs import one_line

if TYPE_CHECKING:
    from refusalscope.model import ChatModel


ROOM = 2**20
PROPOSED = 1.5  # times as fast: below it a number format is not worth a word


class DtypeName(StrEnum):
    """Number format of the parameters."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A directory in Hugging Face format, a GGUF file, or a Hub id.")
]
PromptFile = Annotated[
    Path, typer.Option("--prompts", metavar="FILE", help="A contrast set: .jsonl, .csv, .parquet or a saved dataset.")
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results; made if missing.")]
Seed = Annotated[int, typer.Option(min=0, help="Of placebos and resampling.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Revision = Annotated[str | None, typer.Option(metavar="COMMIT", help="Hub commit, 40 hexadecimal digits.")]
Dtype = Annotated[DtypeName, typer.Option(help="Number format of the parameters.")]
TemplateFile = Annotated[
    Path | None,
    typer.Option("--chat-template", metavar="FILE", help="A Jinja chat template instead of the model's own."),
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="A system message to send before every request.")]
Device = Annotated[str | None, typer.Option(help="Where to run, such as cuda; the CPU unless given.")]


def say(line: str) -> None:
    """Prints one line on stderr, under the program's name; control characters of file names are spelled out."""
    typer.echo(f"refusalscope: {one_line(' '.join(line.split()))}", err=True)


def check_folder(folder: Path) -> None:
    """Raises ResultError when a folder cannot be written or made, or its disk is full: before the work, not after it.

    Tries it with a file of ``ROOM`` bytes that is gone afterwards, because permissions alone do not tell.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ResultError(f"{folder}: cannot be written ({there} is not a folder).")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(ROOM))
    except OSError as error:
        raise ResultError(f"{folder}: cannot be written ({error.strerror or error}, in {there}).") from error


def loaded(
    model: str,
    *,
    revision: str | None,
    dtype: DtypeName,
    device: str | None,
    chat: tuple[Path | None, str | None] = (None, None),
) -> ChatModel:
    """Returns the chat model; ``chat`` is a template's file and a system message, each None for the model's own.

    Raises ModelError for a device this machine does not have.
    """
    import torch

    from refusalscope.model import Chat, load

    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {device}: {str(error).splitlines()[0]}") from error
    spoken = None if chat == (None, None) else Chat(*chat)
    return load(model, revision=revision, dtype=getattr(torch, dtype.value), device=device, chat=spoken)


def propose_dtype(chat: ChatModel) -> None:
    """Says on stderr where another number format would be much faster here; it is used only when asked for."""
    from refusalscope.machine import bfloat16_speedup

    narrow = chat.origin.dtype != "float32"
    ratio = 1.0 if chat.is_organism else bfloat16_speedup(device=chat.origin.device)
    if not narrow and ratio >= PROPOSED:
        say(f"bfloat16 is {ratio:.1f} times as fast as float32 here: --dtype bfloat16 would use it.")
    if narrow and chat.origin.dtype == "bfloat16" and ratio <= 1 / PROPOSED:
        say(f"bfloat16 is {1 / ratio:.0f} times slower than float32 here: leave --dtype out.")


def announce(chat, pf: float) -> None:
    """Says on stderr what a measurement will take at the most, before it runs."""
    weights = sum(value.numel() * value.element_size() for value in chat.bridge.parameters()) / 1e6
    say(f"{chat.origin.name}: at most {pf:,.0f} prompt-forwards; {weights:,.1f} MB of weights on {chat.origin.device}")


def spent(used: float, naive: float) -> str:
    """Returns a cost beside that of a full sweep."""
    return f"{used:,.0f} prompt-forwards of {naive:,.0f} in a full sweep"
