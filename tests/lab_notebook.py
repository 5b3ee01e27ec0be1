"""A notebook open in JupyterLab, as a reader works it: opened, cleared, run from the menu, and looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playwright.sync_api import Page, sync_playwright

from chromium import chromium
from lab_server import Lab

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
SILENT = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
WINDOW = {"width": 1280, "height": 1000}
OPEN_SECONDS, RUN_SECONDS = 240, 480
RAN = re.compile(r"\[\d+\]:")
BAR = re.compile(r"([\d.]+[kMG]?)/([\d.]+[kMG]?) \[\d+:\d\d")  # 3/10 [00:01<00:02, as tqdm writes it

READY = """() => document.querySelectorAll('.jp-Notebook .jp-CodeCell').length > 0
  && document.querySelector('#jp-main-statusbar')?.textContent.includes(') | Idle')"""
ENDED = """() => {
  const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent.trim());
  const idle = document.querySelector('#jp-main-statusbar').textContent.includes(') | Idle');
  const drawn = [...document.querySelectorAll('.jp-OutputArea-output img')].every(e => e.complete);
  return idle && drawn && /\\d/.test(prompts[0] ?? '') && !prompts.includes('[*]:');
}"""
SEEN = """() => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')].map(cell => ({
  prompt: cell.querySelector('.jp-InputPrompt').textContent.trim(),
  kinds: [...cell.querySelectorAll('[data-mime-type]')].map(e => e.dataset.mimeType),
  text: [...cell.querySelectorAll('.jp-OutputArea-output')].map(e => e.textContent).join('\\n'),
  pictures: [...cell.querySelectorAll('.jp-OutputArea-output img')].map(e => e.naturalWidth),
}))"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(cell => cell.model.type === 'code')
  .map(cell => cell.model.outputs.toJSON().filter(one => one.output_type === 'error').map(one => one.ename))"""


@dataclass(frozen=True)
class Cell:
    """A code cell as the page shows it: prompt, kinds and text of outputs, the width of every picture, 0 if it is lost.

    The names of errors are those of the page's own notebook: what is shown of them looks like any text on stderr.
    """

    prompt: str
    kinds: tuple[str, ...]
    text: str
    pictures: tuple[int, ...]
    errors: tuple[str, ...] = ()


@contextmanager
def browser() -> Iterator[Page]:
    """An empty page in a Chromium without a window, closed when the block is left."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=[*FLAGS, *SILENT])
        try:
            page = started.new_page(viewport=WINDOW)
            page.set_default_timeout(OPEN_SECONDS * 1000)
            yield page
        finally:
            started.close()


def open_notebook(page: Page, lab: Lab, name: str) -> None:
    """Opens a notebook of the served folder in a fresh workspace, and returns once its kernel waits for work."""
    page.goto(f"{lab.address(f'lab/tree/notebooks/{name}.ipynb')}&reset")
    page.wait_for_function(READY)


def clear_outputs(page: Page) -> None:
    """Chooses Edit, Clear Outputs of All Cells."""
    page.get_by_role("menuitem", name="Edit", exact=True).click()
    page.get_by_role("menuitem", name="Clear Outputs of All Cells").click()
    page.wait_for_function("() => document.querySelectorAll('.jp-OutputArea-output').length === 0")


def run_all(page: Page) -> None:
    """Chooses Run, Restart Kernel and Run All Cells, agrees, and returns once no cell or picture is waited for."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Restart Kernel and Run All Cells").click()
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.wait_for_function(ENDED, timeout=RUN_SECONDS * 1000)


def cells(page: Page) -> list[Cell]:
    """Every code cell of the open notebook, in order."""
    pairs = zip(page.evaluate(SEEN), page.evaluate(ERRORS), strict=True)
    return [
        Cell(one["prompt"], tuple(one["kinds"]), one["text"], tuple(one["pictures"]), tuple(errors))
        for one, errors in pairs
    ]


def faults(seen: list[Cell]) -> list[str]:
    """What a reader would complain of, one line each: cells that did not run, errors, lost pictures, stuck bars."""
    return [f"cell {number}: {fault}" for number, cell in enumerate(seen, 1) for fault in _faults(cell)]


def _faults(cell: Cell) -> Iterator[str]:
    if not RAN.fullmatch(cell.prompt):
        yield "it did not run"
    yield from (f"it ends in {error}" for error in cell.errors)
    if 0 in cell.pictures:
        yield "a picture did not load"
    yield from (
        f"a progress bar stopped at {done} of {total}" for done, total in BAR.findall(cell.text) if done != total
    )


def picture(page: Page, selector: str, file: str) -> None:
    """Writes a screenshot of the first element a selector finds, all of it, in a window as tall as it needs."""
    element = page.locator(selector).first
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    assert box, f"{selector} is not shown"
    page.set_viewport_size(WINDOW | {"height": max(WINDOW["height"], int(box["height"]) + 200)})
    element.screenshot(path=file, timeout=60_000)
    page.set_viewport_size(WINDOW)
