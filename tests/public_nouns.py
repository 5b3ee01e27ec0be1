"""Which nouns are public, and an instance of each whose every string is hostile, made from its annotations alone."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence as AnySequence
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch

import refusalscope as rs

HOSTILE = '"><img src=x onerror=alert(1)>\n<script>alert(1)</script>'
NUMBER = 0.123456789


def public_nouns() -> dict[str, type]:
    """Every class a public name leads to: exported, returned by a public function, or a part of such a one."""
    found: dict[type, str] = {}
    for where, name, value in _public(rs, "rs"):
        _follow(value, f"{where}.{name}", found)
    return {f"{noun.__module__.removeprefix('refusalscope.')}.{noun.__name__}": noun for noun in found}


def _public(module: types.ModuleType, where: str) -> Iterator[tuple[str, str, object]]:
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    for name in names:
        value = getattr(module, name)
        if not isinstance(value, types.ModuleType):
            yield where, name, value
        elif where == "rs":
            yield from _public(value, f"rs.{name}")


def _follow(value: object, why: str, found: dict[type, str]) -> None:
    if inspect.isclass(value):
        _add(value, why, found)
    elif callable(value):
        for noun in _nouns_in(_hints(inspect.unwrap(value)).get("return")):
            _add(noun, f"{why}()", found)
    elif type(value).__module__.startswith("refusalscope"):
        _add(type(value), why, found)


def _add(noun: type, why: str, found: dict[type, str]) -> None:
    if noun in found or issubclass(noun, BaseException) or getattr(noun, "_is_protocol", False):
        return
    found[noun] = why
    doors = {name: _function(value) for name, value in vars(noun).items()}
    hints = [*_hints(noun).items(), *((name, _hints(door).get("return")) for name, door in doors.items() if door)]
    for name, hint in hints:
        if not name.startswith("_"):
            for part in _nouns_in(hint):
                _add(part, f"{why}.{name}", found)


def _function(value: object) -> object:
    if isinstance(value, classmethod | staticmethod):
        return value.__func__
    if isinstance(value, cached_property):
        return value.func
    return value.fget if isinstance(value, property) else value if inspect.isfunction(value) else None


def _hints(value: object) -> dict[str, object]:
    try:
        return typing.get_type_hints(value)
    except NameError:  # a name known to type checkers only
        return {}


def _nouns_in(hint: object) -> Iterator[type]:
    if inspect.isclass(hint) and getattr(hint, "__module__", "").startswith("refusalscope"):
        yield hint
    for part in typing.get_args(hint):
        yield from _nouns_in(part)


def hostile(noun: type, given: AnyMapping[type, object] | None = None, **values: object) -> object:
    """An instance of a noun with a hostile text in every string and wobbling digits in every number, behind any check.

    ``given`` has the instances of nouns that cannot be made so, ``values`` the fields of this one.
    """
    given = given or {}
    if noun in given:
        return given[noun]
    hints = _hints(noun)
    if dataclasses.is_dataclass(noun):
        hints = {one.name: hints[one.name] for one in dataclasses.fields(noun)}
    elif fields := getattr(noun, "model_fields", None):
        hints = {name: hints[name] for name in fields}
    values = {name: _value(hint, given) for name, hint in hints.items() if name not in values} | values
    if issubclass(noun, tuple):
        return noun(**values)
    made = object.__new__(noun)
    for name in values:
        made.__dict__[name] = values[name]
    return made


def _value(hint: object, given: AnyMapping[type, object]) -> object:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _value(parts[0], given)
    if origin is typing.Literal:
        return parts[0]
    if origin in (typing.Union, types.UnionType):
        return _value(next((part for part in parts if part is str), parts[0]), given)
    if origin is tuple:
        return tuple(_value(part, given) for part in parts if part is not ...)
    if origin in (dict, AnyMapping):
        return {_value(parts[0], given): _value(parts[1], given)}
    if origin in (list, AnySequence):
        return [_value(parts[0], given)]
    return _plain(hint, given)


def _plain(hint: object, given: AnyMapping[type, object]) -> object:
    if not inspect.isclass(hint):
        return HOSTILE
    if hint.__module__.startswith("refusalscope"):
        return hostile(hint, given)
    if issubclass(hint, torch.Tensor) or hint.__module__.startswith("jaxtyping"):
        return torch.full((2, 3, 4), NUMBER)
    if hint is pd.DataFrame:
        return pd.DataFrame({"name": [HOSTILE], "value": [NUMBER]})
    return {str: HOSTILE, bool: True, int: 3, bytes: b"<script>", Path: Path(HOSTILE), object: HOSTILE}.get(
        hint, NUMBER
    )
