import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch) -> Callable[..., None]:
    """script("tasks/compress.py", "--kappa", 3): a script's main in this process, its UserErrors let through."""

    def run(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / name), run_name="script")["main"]()

    return run
