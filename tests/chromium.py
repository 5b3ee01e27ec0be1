"""Where the Chromium of this machine is: `python tests/chromium.py` prints it, or says in one line what to install."""

from __future__ import annotations

import os
import shutil
import sys

VARIABLE = "CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The path of the executable that the variable CHROMIUM names, else of the first of ``NAMES`` on the PATH.

    Raises:
        FileNotFoundError: there is none, with the one thing to do.
    """
    named = os.environ.get(VARIABLE)
    found = next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
    if found is None and named:
        raise FileNotFoundError(f"{VARIABLE}={named} is no executable. Correct it, or unset it.")
    if found is None:
        raise FileNotFoundError(
            f"No Chromium here. Install one (apt-get install chromium), or name another in {VARIABLE}."
        )
    return found


if __name__ == "__main__":
    try:
        print(chromium())
    except FileNotFoundError as missing:
        sys.exit(str(missing))
