"""JupyterLab, really: what a reader sees in a browser when the quickstart runs, and when a text is hostile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Page

from lab_notebook import Cell, browser, cells, clear_outputs, faults, open_notebook, picture, run_all
from lab_server import ROOT, Lab, checkout, serving

pytestmark = pytest.mark.browser

PICTURES = ROOT / "build" / "browser"
HOSTILE = '<script>window.scripted=1</script><img src=x onerror="window.drawn=1"><u>marked</u>'
PWNED = """() => [window.scripted ?? null, window.drawn ?? null,
  document.querySelectorAll('.jp-OutputArea-output :is(script, u)').length]"""
CRAMPED = """() => [...document.querySelectorAll('.guardrail-card :is(td, th)')]
  .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"""
ALIGNED = "e => getComputedStyle(e).textAlign"
START = f"""from dataclasses import replace
import pandas as pd
import results_by_hand as by_hand
import refusalscope as rs
from matplotlib.figure import Figure
from refusalscope.diagnosis import Finding
from refusalscope.estimate import Estimate
from refusalscope.instrument import Check, Instrument
from refusalscope.reading import Readout
from refusalscope.optionality import Difference
pd.options.display.max_colwidth = None
bad = {HOSTILE!r}
rows = [
    dict(id=f"{{label}} {{n}}", label=label, category=bad, cluster=f"{{n % 6}}{{bad}}", text=f"{{label}} {{n}} {{bad}}")
    for label in ("restricted", "harmless") for n in range(18)
]
number = Estimate(0.5, (0.4, 0.6), 9, None, bad, unit=bad, note=bad)"""
SHOWN: dict[str, str] = {
    "a table of prompts": "pd.DataFrame(rows)[['label', 'category', 'text']].head(4)",
    "a contrast set": "rs.ContrastSet.from_rows(rows, source=bad)",
    "a number": "number",
    "a claim": "rs.claim(bad, True, {bad: bad, 'number': number})",
    "a readout": "Readout(((1,),), phrases=(bad,), mass=0.9, harmless_mass=0.0, n=9)",
    "an instrument check": "Instrument('failed', bad, (Check(bad, bad, 0.5, at_least=0.9),))",
    "a finding": "Finding(bad, 'fired', bad, {bad: number}, bad, bad)",
    "a difference": "Difference(bad, bad, 0.1, number, number, ())",
    "a figure": "rs.figures.save(Figure(), 'hostile', data=pd.DataFrame({'x': [1.0]}), claim=bad)",
    "a model": "model = rs.load('../data/organisms/guarded-0')\nreplace(model, origin=replace(model.origin, name=bad))",
    "a comparison": "rs.compare(by_hand.card(name=bad), by_hand.card(name='other'))",
    "a card": "by_hand.card(name=bad, source=bad)",
}
FAULTY = (
    "from tqdm import tqdm\nfor _ in tqdm(range(3)): pass",
    "bar = tqdm(total=3)\nbar.update(2)\nbar.refresh()",
    "from IPython.display import HTML\nHTML('<img src=none.png>')",
    "1 / 0",
    "2",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab over a copy of the quickstart and three notebooks written here."""
    root = checkout(tmp_path_factory.mktemp("checkout"), "00_quickstart")
    shutil.copy(ROOT / "tests" / "results_by_hand.py", root / "notebooks")
    write(root, "hostile", START, *SHOWN.values())
    write(root, "unescaped", f"from IPython.display import HTML\nHTML({HOSTILE!r})")
    write(root, "faulty", *FAULTY)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with serving(root, tmp_path_factory.mktemp("home")) as started:
        yield started


def write(root: Path, name: str, *sources: str) -> None:
    """Writes a notebook of code cells for the kernel that every notebook here names."""
    told = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    book = new_notebook(cells=[new_code_cell(one) for one in sources], metadata=told)
    nbformat.write(book, root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def page() -> Iterator[Page]:
    with browser() as opened:
        yield opened


def ran(page: Page, lab: Lab, name: str) -> list[Cell]:
    """The cells of a notebook after it was opened and run, nothing of what it showed before left."""
    open_notebook(page, lab, name)
    clear_outputs(page)
    assert not any(cell.text or cell.kinds for cell in cells(page))
    run_all(page)
    page.screenshot(path=PICTURES / f"{name}.png")
    return cells(page)


def test_the_server_listens_on_loopback_and_refuses_a_request_without_its_token(lab):
    asked = {token: lab.answer("/api/contents", token=token) for token in ("", "another", lab.token)}
    assert asked == {"": 403, "another": 403, lab.token: 200}


def test_the_quickstart_runs_in_jupyterlab_and_shows_its_figure_and_its_card(lab, page):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    shown = ran(page, lab, "00_quickstart")
    picture(page, ".jp-OutputArea-output figure", str(PICTURES / "quickstart_figure.png"))
    picture(page, ".guardrail-card", str(PICTURES / "quickstart_card.png"))
    assert faults(shown) == []
    assert page.evaluate(CRAMPED) == []
    asides = {page.locator(f".guardrail-card {one}").first.evaluate(ALIGNED) for one in ("tbody th", "td:not(.num)")}
    assert asides == {"left"}
    assert [width > 0 for cell in shown for width in cell.pictures] == [True]
    assert page.locator(".guardrail-card .claim").inner_text().startswith("The guardrail of guarded-0 is optional")
    assert (lab.root / "build" / "quickstart" / "card.html").is_file()
    assert [one for one in asked if not one.startswith((lab.address("").split("?")[0], "data:", "blob:"))] == []


def test_hostile_text_is_shown_as_text_in_every_table_card_and_figure(lab, page):
    started, *shown = ran(page, lab, "hostile")
    found = dict(zip(SHOWN, shown, strict=True))
    assert faults([started, *shown]) == []
    picture(page, ".jp-OutputArea-output .dataframe", str(PICTURES / "hostile_table.png"))
    picture(page, ".guardrail-card", str(PICTURES / "hostile_card.png"))
    assert [name for name, cell in found.items() if "text/html" not in cell.kinds or HOSTILE not in cell.text] == []
    assert [name for name, cell in found.items() if cell.pictures] == ["a figure"]
    assert page.evaluate(PWNED) == [None, None, 0]


def test_the_same_text_unescaped_would_have_run(lab, page):
    assert faults(ran(page, lab, "unescaped")) == ["cell 1: a picture did not load"]
    page.wait_for_function("() => window.drawn")
    assert page.evaluate(PWNED) == [1, 1, 2]


def test_an_error_a_lost_picture_and_a_bar_that_stopped_are_noticed(lab, page):
    assert faults(ran(page, lab, "faulty")) == [
        "cell 2: a progress bar stopped at 2 of 3",
        "cell 3: a picture did not load",
        "cell 4: it ends in ZeroDivisionError",
        "cell 5: it did not run",
    ]
