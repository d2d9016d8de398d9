"""Errors that a user can cause and mend, kept apart from defects of ours."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit with its code; a `UserError` prints one line on stderr and exits with 2."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code or 0)
