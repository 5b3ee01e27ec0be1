"""JupyterLab on loopback behind a token, over a temporary copy of what notebooks need: nothing stored is touched."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from refusalscope.figures import FOLDER_VARIABLE

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
START_SECONDS = 240
NO_NEWS = {"@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}


@dataclass(frozen=True)
class Lab:
    """A server that runs: the port it listens on, the token it wants, the folder it serves."""

    port: int
    token: str
    root: Path

    def address(self, path: str) -> str:
        """The address of a page, with the token."""
        return f"http://{HOST}:{self.port}/{path}?token={self.token}"

    def answer(self, path: str, *, token: str) -> int:
        """The status with which the server answers a request that brings this token, or none where it is empty."""
        connection = HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Authorization": f"token {token}"} if token else {})
            return connection.getresponse().status
        finally:
            connection.close()


def checkout(root: Path, *notebooks: str) -> Path:
    """The folder, as a checkout with these notebooks: data is linked, figures and cards are written inside it."""
    for name in ("notebooks", "figures", "build"):
        (root / name).mkdir()
    (root / "data").symlink_to(ROOT / "data", target_is_directory=True)
    for name in notebooks:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", root / "notebooks")
    return root


@contextmanager
def serving(root: Path, home: Path) -> Iterator[Lab]:
    """JupyterLab over a folder, ready for requests; ended, with its kernels, when the block is left.

    Its settings are its own, in ``home``: nothing is read from, or written for, the person who runs this.
    """
    lab = Lab(_free_port(), secrets.token_hex(24), root)
    options = (f"--ip={HOST}", f"--port={lab.port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}")
    quiet = ("--no-browser", "--allow-root", "--LabApp.news_url=", "--LabApp.extension_manager=readonly")
    command = [sys.executable, "-m", "jupyterlab", *options, *quiet, "--expose-app-in-browser"]
    log = home / "server.log"
    with log.open("wb") as said:
        place = _environment(lab, home)
        server = subprocess.Popen(command, cwd=root, env=place, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            _wait(server, lab, log)
            yield lab
        finally:
            _end(server)


def _environment(lab: Lab, home: Path) -> dict[str, str]:
    """What the server and its kernels run in: no settings but ours, one thread, no download, figures in the copy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "XDG_"))}
    folders = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    settings = home / "settings"
    for name, values in NO_NEWS.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    folders |= {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    ours = {"HOME": str(home), "IPYTHONDIR": str(home / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1"}
    run = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", FOLDER_VARIABLE: str(lab.root / "figures")}
    return kept | folders | ours | run | {"JUPYTER_TOKEN": lab.token}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return free.getsockname()[1]


def _wait(server: subprocess.Popen[bytes], lab: Lab, log: Path) -> None:
    """Asks until the server answers. Raises RuntimeError with the end of its log when it never does."""
    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            if lab.answer("/api/status", token=lab.token) == 200:
                return
        except ConnectionError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server, which ends its kernels; by force when it does not go."""
    server.terminate()
    try:
        server.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
