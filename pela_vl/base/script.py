"""The command line of a script: what --help shows first."""

import argparse


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        """The description before the usage: what the script does, and examples that run."""
        description, self.description = self.description, None
        try:
            return f"{(description or '').strip()}\n\n{super().format_help()}"
        finally:
            self.description = description


def script_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose --help opens with `description`, the script's docstring, as it stands."""
    return _Parser(description=description)
