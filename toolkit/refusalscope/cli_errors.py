"""The command line's errors: what a user can cause is one line on stderr, with an exit code, and no traceback."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from refusalscope.cli_options import say
from refusalscope.errors import RefusalscopeError

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
UsageError: Any = typer.BadParameter.__base__  # typer exports its subclasses only


class OneLine(TyperGroup):
    """Commands whose errors are one line: exit code 1, 2 for wrong usage, and 130 for an interruption."""

    def make_context(self, *args, **more):
        """Reads the options of the program itself."""
        with _one_line():
            return super().make_context(*args, **more)

    def invoke(self, ctx):
        """Invokes the command."""
        with warnings.catch_warnings(), _one_line():
            warnings.showwarning = lambda message, *_rest, **_more: say(f"warning: {message}")
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except RefusalscopeError as error:
        say(str(error))
        raise typer.Exit(FAILED) from error
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        say(f"{error.filename or 'input or output'}: {error.strerror or error}")
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        say("interrupted; nothing more was written")
        raise typer.Exit(INTERRUPTED) from None
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no error: the help was asked for by saying nothing
            raise
        where = " ".join(["refusalscope", *(error.ctx.command_path.split()[1:] if error.ctx else ())])
        told = error.format_message().rstrip(".").replace("Value error, ", "")
        say(f"{told}{'' if told.endswith('?') else '.'} See {where} --help.")
        raise typer.Exit(WRONG_USAGE) from error
