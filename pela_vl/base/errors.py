"""Errors that a user can cause and fix, apart from bugs, and the start and end of a script."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do."""


def no_checkpoint(path: str | os.PathLike[str]) -> UserError:
    """The error about a checkpoint that is not there."""
    return UserError(
        f"checkpoint {path}: no such file; docs/checkpoints.md says where published ones are and which commands write ours"
    )


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit with its code; a `UserError` prints one line on stderr and exits with 2.

    Before that, `~` in the command line becomes the home folder where the shell left it (as in `--output=~/runs`), and what
    standard output cannot show in its encoding is written as its code, so that a print never ends a run.
    """
    sys.argv[1:] = [_expand_argument(argument) for argument in sys.argv[1:]]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code or 0)


def expand_home(path: str) -> str:
    """Replace a leading `~` part by the home folder."""
    return os.path.expanduser(path) if path == "~" or path.startswith(("~/", "~" + os.sep)) else path


def _expand_argument(argument: str) -> str:
    option, equals, value = argument.partition("=")
    if equals and option.startswith("--"):
        return option + equals + expand_home(value)
    return expand_home(argument)
