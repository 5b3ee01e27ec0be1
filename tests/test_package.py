"""The package itself: importing it costs nothing, and every public name is there when it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import refusalscope as rs

SOURCE = Path(rs.__file__).read_text(encoding="utf-8")
HEAVY = ("torch", "transformers", "transformer_lens", "matplotlib", "pandas", "scipy")
FUNCTIONS_NAMED_LIKE_THEIR_MODULE = (
    "audit",
    "cosmic",
    "capture",
    "effect",
    "forecast",
    "monitor",
    "outcomes",
    "replay",
)


def said(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def declared() -> dict[str, str]:
    """What type checkers are told: each name with the module it comes from."""
    (block,) = (node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}


@pytest.mark.parametrize("start", ["import refusalscope", "from refusalscope import cli"])
def test_importing_the_package_or_its_command_line_imports_nothing_heavy(start):
    assert said(f"{start}; import sys; print(sorted(set(sys.modules) & {set(HEAVY)}))") == "[]"


def test_using_a_name_imports_what_it_needs():
    assert said("import refusalscope, sys; refusalscope.load; print('torch' in sys.modules)") == "True"


@pytest.mark.parametrize("name", rs.__all__)
def test_every_public_name_is_what_type_checkers_are_told(name):
    module, _, attribute = declared()[name].rpartition(".")
    __import__(module)
    found = getattr(rs, name)
    assert found is sys.modules.get(f"{module}.{attribute}", None) or found is getattr(sys.modules[module], attribute)
    assert name in dir(rs)


def test_the_public_names_and_those_for_type_checkers_are_the_same():
    assert sorted(declared()) == sorted(rs.__all__)
    assert rs.__all__ == sorted(rs.__all__)


def test_a_function_is_not_hidden_by_the_module_of_its_name():
    assert not any(isinstance(getattr(rs, name), ModuleType) for name in FUNCTIONS_NAMED_LIKE_THEIR_MODULE)
    imports = "".join(f"import refusalscope.{name}\n" for name in FUNCTIONS_NAMED_LIKE_THEIR_MODULE)
    names = ", ".join(f"refusalscope.{name}" for name in FUNCTIONS_NAMED_LIKE_THEIR_MODULE)
    kinds = said(f"{imports}print({{type(one).__name__ for one in ({names})}})")
    assert kinds == "{'function'}"


def test_every_function_named_like_its_module_is_tested_for_that():
    home = Path(rs.__file__).parent
    modules = {file.stem for file in (*home.glob("*.py"), *(inside.parent for inside in home.glob("*/__init__.py")))}
    clashing = {name for name, home in declared().items() if name in modules and home != f"refusalscope.{name}"}
    assert clashing == set(FUNCTIONS_NAMED_LIKE_THEIR_MODULE)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'unheard'"):
        _ = rs.unheard
    assert said("import refusalscope; print(hasattr(refusalscope, 'unheard'))") == "False"
