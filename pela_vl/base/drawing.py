"""A figure of matplotlib without a display, and its file."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_write

if TYPE_CHECKING:  # matplotlib is an extra
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches. Raises UserError without matplotlib."""
    # matplotlib checks MPLBACKEND at import; a notebook's backend may not be installed here, and these figures need none
    backend = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('plots want matplotlib: pip install -c constraints.txt -e ".[viz]"') from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return Figure((width, height), dpi=130, layout="constrained")


def save_figure(figure: "Figure", path: Path) -> Path:
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png")
    return path
