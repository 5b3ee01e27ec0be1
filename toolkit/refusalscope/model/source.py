"""Which files a name means: a directory or a GGUF file here, or one pinned commit of a Hub repository."""

from __future__ import annotations

import difflib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

# The one of whichever library the client speaks HTTP with: httpx in some versions, httpx2 in others.
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

from refusalscope.errors import ModelError
from refusalscope.model.gguf_files import is_gguf
from refusalscope.model.safety import check_settings

UNSERVED = (OSError, HTTPError)
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
NEEDED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
ELSEWHERE = ["*/*", "consolidated*"]  # subfolders, and the same weights once more in another layout


class UnpinnedRevisionWarning(UserWarning):
    """A Hub model was named without a commit: the same line may load other weights tomorrow."""


@dataclass(frozen=True)
class Source:
    """A directory with a model's files, and the name results call it by: never a path.

    Attributes:
        gguf: the one file that is the model; None where the directory is.
        code_not_run: whether the directory names code, which is kept from the loader.
    """

    directory: Path
    name: str
    commit: str | None
    gguf: Path | None = None
    code_not_run: bool = False


def find_source(name: str | Path, *, revision: str | None) -> Source:
    """Returns the directory or GGUF file called ``name``, or downloads that Hub repository at one commit.

    Of a Hub repository the settings are fetched and checked first, and weights only if these ask for no code.

    Raises:
        ModelError: when there is neither, with the nearest name there is.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise ModelError(f"{directory.name}: revision={revision!r} given for a directory. Leave it out.")
        return Source(directory.resolve(), directory.resolve().name, None)
    if is_gguf(directory):
        return _gguf_source(directory, name, revision=revision)
    if isinstance(name, Path) or _means_a_path(name):
        raise ModelError(f"{name}: no such directory.{_nearest(directory)}")
    return _from_hub(name, revision=revision)


def _gguf_source(file: Path, name: str | Path, *, revision: str | None) -> Source:
    if not file.is_file():
        raise ModelError(f"{name}: no such file.{_nearest(file)}")
    if revision is not None:
        raise ModelError(f"{file.name}: revision={revision!r} given for a file. Leave it out.")
    return Source(file.resolve().parent, file.name, None, gguf=file)


def _from_hub(name: str, *, revision: str | None) -> Source:
    try:
        commit = _commit(name, revision)
        settings = huggingface_hub.snapshot_download(
            name, revision=commit, allow_patterns=["*.json"], ignore_patterns=ELSEWHERE
        )
        check_settings(Path(settings), name=name)
        files = huggingface_hub.snapshot_download(
            name, revision=commit, allow_patterns=NEEDED, ignore_patterns=ELSEWHERE
        )
    except UNSERVED as error:
        reason = f"the Hub did not serve {name!r} ({type(error).__name__})"
        raise ModelError(f"{name}: no such directory, and {reason}.{_nearest(Path(name))}") from error
    return Source(Path(files), name, commit)


def _commit(name: str, revision: str | None) -> str:
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    commit = huggingface_hub.HfApi().model_info(name, revision=revision).sha
    if commit is None or not COMMIT.fullmatch(commit):
        raise ModelError(
            f"{name}: the Hub gave no commit for revision {revision!r}. Give one of 40 hexadecimal digits."
        )
    warnings.warn(
        f"{name}: not pinned, so this may load other weights another day. Pass revision={commit!r}.",
        UnpinnedRevisionWarning,
        stacklevel=5,
    )
    return commit


def _means_a_path(name: str) -> bool:
    parent = Path(name).parent
    return not HUB_ID.fullmatch(name) or name.startswith(".") or (parent != Path(".") and parent.is_dir())


def _nearest(directory: Path) -> str:
    siblings = [entry.name for entry in directory.parent.iterdir()] if directory.parent.is_dir() else []
    close = difflib.get_close_matches(directory.name, sorted(siblings), n=1)
    return (
        f" Did you mean {str(directory.with_name(close[0]))!r}?"
        if close
        else " Give a directory, a GGUF file or a Hub id."
    )
