"""Where the browser test finds its Chromium, what is said where there is none, and which commands want one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def asked(path: Path, **variables: str) -> tuple[int, str, str]:
    """The exit code, output and complaint of `python tests/chromium.py` with only these executables on the PATH."""
    command = [sys.executable, ROOT / "tests" / "chromium.py"]
    said = subprocess.run(command, env={"PATH": str(path), **variables}, capture_output=True, text=True, check=False)
    return said.returncode, said.stdout.strip(), said.stderr.strip()


def executable(file: Path) -> Path:
    file.write_text("#!/bin/sh\n")
    os.chmod(file, 0o755)
    return file


def test_a_chromium_on_the_path_is_found_and_the_variable_names_another(tmp_path):
    plain = executable(tmp_path / "google-chrome")
    assert asked(tmp_path) == (0, str(plain), "")
    other = executable(tmp_path / "other")
    assert asked(tmp_path, CHROMIUM=str(other)) == (0, str(other), "")


def test_without_a_chromium_one_line_says_what_to_install(tmp_path):
    code, found, said = asked(tmp_path)
    assert (code, found) == (1, "")
    assert said == "No Chromium here. Install one (apt-get install chromium), or name another in CHROMIUM."


def test_a_variable_that_names_no_executable_is_an_error_even_beside_a_chromium(tmp_path):
    executable(tmp_path / "chromium")
    code, _, said = asked(tmp_path, CHROMIUM="/no/such")
    assert code == 1
    assert said == "CHROMIUM=/no/such is no executable. Correct it, or unset it."


def test_make_test_wants_no_browser_and_continuous_integration_runs_both():
    recipes = dict(re.findall(r"^([a-z-]+):[^\n]*\n((?:\t[^\n]*\n)+)", (ROOT / "Makefile").read_text(), re.M))
    assert '-m "not slow and not browser and not real"' in recipes["test"]
    assert "-m browser" in recipes["test-browser"]
    assert re.findall(r"^make .*", (ROOT / ".ci" / "run").read_text(), re.M) == [
        "make test",
        "make test-real",
        "make test-browser",
    ]
