"""How nbval runs the notebooks: digits and pictures are skipped, figures go elsewhere, and their records are compared.

`pytest --nbval notebooks` compares the plain text of every cell. The figures that the cells save land in a temporary
folder; at the end each of their records is compared with the committed one in `figures/`, within its tolerances.
`--nbval-lax` does not compare the text; cells must still run and records must still agree. With either, a cell fails
that shows a claim which does not hold, though the stored output says the same.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

from refusalscope.claims import BROKEN
from refusalscope.errors import ResultError
from refusalscope.figures import FOLDER_VARIABLE, compare, read_record

COMMITTED = Path(__file__).parents[1] / "figures"
SKIPPED = ("text/html", "stderr", "image/png", "image/svg+xml", "image/jpeg")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def pytest_configure(config: pytest.Config) -> None:
    """Sets what the kernels inherit, as make does, and has them run where pytest runs unless another is named.

    The kernel that a notebook stores is the one of whoever saved it last. Nothing when the notebooks are not run.
    """
    if not (config.getoption("nbval", False) or config.getoption("nbval_lax", False)):
        return
    config.option.nbval_current_env = config.getoption("nbval_kernel_name") is None
    if hasattr(config, "workerinput"):  # of pytest-xdist: it inherits all this, and the records are compared once
        return
    fresh = Path(tempfile.mkdtemp(prefix="refusalscope-figures-"))
    os.environ |= OFFLINE | dict(os.environ) | {"OMP_NUM_THREADS": "1", FOLDER_VARIABLE: str(fresh)}
    config.pluginmanager.register(Records(fresh))


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Tells nbval what not to compare: it keeps the plain text, which states the claim."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += SKIPPED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fails a cell whose output states a claim that its numbers do not bear out."""
    yield
    if broken := broken_claims(getattr(item, "test_outputs", None) or []):
        pytest.fail("\n".join(broken), pytrace=False)


def broken_claims(outputs: Iterable[dict]) -> list[str]:
    """Returns the lines, of results and of what was printed, that say of a claim that it does not hold."""
    texts = [one.get("data", {}).get("text/plain", "") for one in outputs if "data" in one]
    texts += [one.get("text", "") for one in outputs if one.get("name") == "stdout"]
    return [line.strip() for text in texts for line in text.splitlines() if BROKEN in line]


class Records:
    """Compares the records that the notebooks make, once all have run, with the committed ones."""

    def __init__(self, fresh: Path) -> None:
        self.fresh, self.ran, self.drifted = fresh, set[str](), list[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes which notebooks ran, here or in another process."""
        self.ran.add(Path(report.nodeid.split("::")[0]).stem)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails the session when a record drifted, whatever the cells said."""
        self.drifted = drift(self.fresh, COMMITTED, notebooks=self.ran)
        if self.drifted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        """Says which numbers drifted, and keeps the fresh figures only then."""
        if self.drifted:
            terminalreporter.section("figures that no longer show their committed numbers", red=True)
            terminalreporter.write("\n".join([*self.drifted, f"fresh records: {self.fresh}", ""]))
        else:
            shutil.rmtree(self.fresh)


def drift(fresh: Path, committed: Path, *, notebooks: Iterable[str]) -> list[str]:
    """Returns the differences between two folders of records, in words; empty when there are none.

    Args:
        fresh: the records that a run just made.
        committed: the records to compare them with.
        notebooks: those that ran; a committed record of one of them must have been made again.
    """
    found = []
    for file in sorted(fresh.glob("*.json")):
        try:
            found += [f"{file.stem}: {line}" for line in compare(read_record(committed / file.name), read_record(file))]
        except ResultError as error:
            found.append(f"{file.stem}: {error}")
    ran = set(notebooks)
    kept = [file for file in sorted(committed.glob("*.json")) if not (fresh / file.name).exists()]
    return found + [f"{one.stem}: its notebook ran and did not save it" for one in kept if _maker(one) in ran]


def _maker(record: Path) -> str:
    """The notebook that made a record; empty for a file that is no record, which another test reports."""
    try:
        return Path(read_record(record).notebook).stem
    except ResultError:
        return ""
