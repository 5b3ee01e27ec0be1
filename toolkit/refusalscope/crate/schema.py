"""The shape of every entity in a crate, closed: each field of its kind is there, no other is, and the values fit."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refusalscope.crate.given import METADATA

VERSION, PROFILE_VERSION = "1.3", "0.6"
SPECIFICATION = f"https://w3id.org/ro/crate/{VERSION}"
CONTEXT = f"{SPECIFICATION}/context"
PROFILE = f"https://w3id.org/ro/wfrun/process/{PROFILE_VERSION}"
LICENCE = "https://spdx.org/licenses/MIT"
MACHINE = "#machine"
COMPLETED, FAILED = (f"http://schema.org/{state}ActionStatus" for state in ("Completed", "Failed"))
OUTSIDE = frozenset({SPECIFICATION, COMPLETED, FAILED})

Text = Annotated[str, Field(min_length=1)]
Line = Annotated[str, Field(pattern=r"^[^\r\n]*\S[^\r\n]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[str, Field(pattern=r"^\d+$")]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Ref(_Closed):
    """A reference to another entity."""

    id: Annotated[Text, Field(alias="@id")]


Refs = Annotated[list[Ref], Field(min_length=1)]


class Entity(_Closed):
    """What every entity has."""

    id: Annotated[Text, Field(alias="@id")]
    type: Annotated[Any, Field(alias="@type")]


class Named(Entity):
    """An entity with a name for people."""

    name: Text


class Descriptor(Entity):
    """The metadata file's own entity."""

    conformsTo: Ref
    about: Ref


class Root(Named):
    """The crate as a whole."""

    description: Text
    datePublished: Time
    license: Ref
    conformsTo: Refs
    hasPart: Refs
    mentions: Refs


class Profile(Named):
    """The profile that the crate follows."""

    version: Text


class Licence(Named):
    """The licence of what is in the crate."""

    description: Text


class Held(Named):
    """A file: its format, its size in bytes, its digest."""

    encodingFormat: Text
    contentSize: Size
    sha256: Digest


class Given(Held):
    """A file of the checkout, which is not in the crate."""

    localPath: Text


class Source(Given):
    """A notebook of the checkout, and what it needs."""

    softwareRequirements: Refs


class Folder(Named):
    """A folder of the checkout."""

    description: Text
    localPath: Text
    hasPart: Refs


class Software(Named):
    """A package, its home and its version."""

    url: Text | Ref
    version: Text


class Machine(Named):
    """The kind of the machine."""

    description: Text
    additionalProperty: Refs


class Value(Named):
    """A parameter of a notebook, a seed among them, or a fact of the machine."""

    value: bool | int | float | str


class Action(Named):
    """One notebook's run."""

    description: Text
    instrument: Ref
    object: Refs
    result: Refs
    startTime: Time
    endTime: Time
    actionStatus: Ref


class FailedAction(Action):
    """One that failed: it may have made nothing, and says the last line of its error."""

    result: Annotated[list[Ref], Field(min_length=1)] = Field(default_factory=list)
    error: Line


BY_TYPE: dict[tuple[str, ...], type[Entity]] = {
    ("Dataset",): Folder,
    ("File",): Held,
    ("File", "SoftwareSourceCode"): Source,
    ("SoftwareApplication",): Software,
    ("IndividualProduct",): Machine,
    ("PropertyValue",): Value,
    ("CreateAction",): Action,
    ("CreativeWork",): Licence,
    ("CreativeWork", "Profile"): Profile,
}


def read(entity: dict[str, Any]) -> tuple[Entity | None, list[tuple[str, str]]]:
    """Returns the entity when it has its kind's shape, and else nothing and each field that has not, with why."""
    words = entity.get("@type")
    kind = BY_TYPE.get(tuple(map(str, words)) if isinstance(words, list) else (str(words),))
    if kind is None:
        return None, [("@type", "missing" if words is None else f"{words!r} is none that a crate of a run holds")]
    try:
        return _kind(entity, kind).model_validate(entity), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        return None, list(dict.fromkeys((str(one["loc"][0]), _said(one["type"], one["msg"])) for one in found))


def _kind(entity: dict[str, Any], kind: type[Entity]) -> type[Entity]:
    """The kind, where one type stands for several."""
    name = str(entity.get("@id", ""))
    if kind is Licence and name == METADATA:
        return Descriptor
    if kind is Folder and name == "./":
        return Root
    if kind is Held and (name.startswith("#") or "localPath" in entity):
        return Given
    return FailedAction if kind is Action and entity.get("actionStatus") == {"@id": FAILED} else kind


def _said(kind: str, message: str) -> str:
    return {"missing": "missing", "extra_forbidden": "no such field here"}.get(kind, message[:1].lower() + message[1:])
