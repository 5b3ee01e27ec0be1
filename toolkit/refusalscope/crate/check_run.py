"""What is wrong with the run that a crate tells of: its actions, their parameters and software, and its figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from refusalscope.crate.given import FOLDERS, PINS, parameters, sources
from refusalscope.crate.read import AGAIN, Graph, references
from refusalscope.crate.schema import MACHINE, Action, FailedAction, Machine, Ref, Software, Source, Value
from refusalscope.errors import ResultError
from refusalscope.figure_check import SUFFIXES, Fault, pins
from refusalscope.figures import MANIFEST, PACKAGES, read_manifest
from refusalscope.machine import MachineClass

SOFTWARE = ("python", *PACKAGES)


def run_faults(graph: Graph) -> list[Fault]:
    """Returns what is wrong with a crate's run; entities without the shape of their kind are left out here."""
    actions = [fault for action in graph.all(Action) for fault in _action(graph, action)]
    return [*_notebooks(graph), *actions, *_software(graph), *_machine(graph), *_figures(graph)]


def _ids(references: list[Ref]) -> list[str]:
    return [reference.id for reference in references]


def _notebooks(graph: Graph) -> Iterator[Fault]:
    """Every notebook has one action, which the crate mentions."""
    actions = [row for row in graph.raw.values() if row.get("@type") == "CreateAction"]
    ran = [name for row in actions for name in references(row.get("instrument"))]
    for name in sources(graph.root):
        if ran.count(f"#{name}") != 1:
            yield Fault(name, "CreateAction", f"{ran.count(f'#{name}') or 'no'} action of the crate ran it", AGAIN)
    mentioned = set(references(graph.raw.get("./", {}).get("mentions")))
    for name in (*(action.id for action in graph.all(Action)), MACHINE):
        if name not in mentioned:
            yield Fault(name, "mentions", "the crate does not mention it", AGAIN)


def _action(graph: Graph, action: Action) -> Iterator[Fault]:
    """One action: with what, on what, when, and what it made."""
    name = f"notebooks/{action.id.removeprefix('#')}.ipynb"
    if action.instrument.id != f"#{name}":
        yield Fault(action.id, "instrument", f"{action.instrument.id} in place of #{name}", AGAIN)
    if action.startTime > action.endTime:
        yield Fault(action.id, "endTime", f"{action.endTime} is before {action.startTime}", AGAIN)
    if not isinstance(action, FailedAction) and name not in _ids(action.result):
        yield Fault(action.id, "result", f"{name} is not in it, although the notebook ran to its end", AGAIN)
    wanted = [PINS, *(f"#{folder}/" for folder in FOLDERS if (graph.root / folder).is_dir())]
    for one in wanted:
        if one not in _ids(action.object):
            yield Fault(action.id, "object", f"{one} is not in it", AGAIN)
    yield from _parameters(graph, action, name)


def _parameters(graph: Graph, action: Action, name: str) -> Iterator[Fault]:
    """The recorded parameters, the seed among them, against those of the notebook."""
    if not (graph.root / name).is_file():
        return
    try:
        stated = parameters(graph.root / name)
    except ResultError as error:
        yield Fault(name, "parameters", str(error).rstrip("."), "Restore it.")
        return
    told = [value for value in map(graph.good.get, _ids(action.object)) if isinstance(value, Value)]
    recorded = {value.name: value.value for value in told}
    for key in sorted({*stated, *recorded}):
        before, after = (repr(where.get(key, "nothing")) for where in (stated, recorded))
        if before != after:
            yield Fault(action.id, f"object: {key}", f"{after} in place of {before}", AGAIN)


def _software(graph: Graph) -> Iterator[Fault]:
    """Every notebook needs every package, in the version that is pinned."""
    versions = {software.name: software for software in graph.all(Software)}
    for name in SOFTWARE:
        if name not in versions or versions[name].id != f"#{name}":
            yield Fault(f"#{name}", "version", "the crate does not say which version ran", AGAIN)
    for source in graph.all(Source):
        for name in (f"#{one}" for one in SOFTWARE):
            if name not in _ids(source.softwareRequirements):
                yield Fault(source.id, "softwareRequirements", f"{name} is not in it", AGAIN)
    for name, pinned in pins(graph.folder).items():
        if name in versions and versions[name].version.split("+")[0] != pinned:
            said = f"{versions[name].version}, {pinned} in {PINS}"
            yield Fault(f"#{name}", "version", said, "Run `make reproduce` with the pinned packages.")


def _machine(graph: Graph) -> Iterator[Fault]:
    """The machine's class, fact by fact."""
    machine = graph.good.get(MACHINE)
    told = set(_ids(machine.additionalProperty)) if isinstance(machine, Machine) else set()
    for name in (field.name for field in fields(MachineClass)):
        if f"{MACHINE}/{name}" not in told:
            yield Fault(MACHINE, name, "the crate does not say it of the machine", AGAIN)


def _figures(graph: Graph) -> Iterator[Fault]:
    """Each figure of the manifest was saved by the notebook that the manifest names."""
    try:
        rows = read_manifest(graph.folder / "figures")
    except ResultError as error:
        yield Fault(f"figures/{MANIFEST}", "file", str(error).rstrip("."), AGAIN)
        return
    if f"figures/{MANIFEST}" not in graph.raw:
        yield Fault(f"figures/{MANIFEST}", "file", "the crate does not hold it", AGAIN)
    made = {name: action.id for action in graph.all(Action) for name in _ids(action.result)}
    for row in rows:
        for name in (f"figures/{row['figure']}.{suffix}" for suffix in SUFFIXES):
            if name not in made:
                yield Fault(name, "result", "no notebook of this run saved it", AGAIN)
            elif made[name] != f"#{row['notebook']}":
                yield Fault(name, "result", f"{made[name]} saved it, {row['notebook']} in {MANIFEST}", AGAIN)
