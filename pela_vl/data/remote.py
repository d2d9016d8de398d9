"""Files at an address (s3://, gs://, hf://, http://, memory://) through fsspec, and local files alike."""

import os
import re
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pela_vl.base.errors import UserError

PathLike = str | os.PathLike[str]
Answer = TypeVar("Answer")
_PAUSES = (0.5, 2.0)  # seconds before a request that failed is made again
_CHUNK = 8 * 2**20  # bytes copied at a time
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")
_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf", "http": "http", "https": "http"}


def is_remote(path: PathLike) -> bool:
    """Whether a path is an address with a scheme."""
    return bool(_SCHEME.match(os.fspath(path)))


def content(path: PathLike) -> bytes:
    """The content of a small file. Raises OSError as `open` does."""
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    system, name = _system(os.fspath(path))
    return _answer(lambda: system.cat_file(name))


def size_of(path: PathLike) -> int | None:
    """Bytes of a file; None if there is none."""
    if not is_remote(path):
        return os.path.getsize(path) if os.path.isfile(path) else None
    system, name = _system(os.fspath(path))
    try:
        return _answer(lambda: system.size(name))
    except FileNotFoundError:
        return None


def copied(path: str) -> int:
    """A handle of an unnamed temporary copy, which disappears when it is closed. Raises OSError as `open` does."""
    system, name = _system(path)
    with tempfile.TemporaryFile() as copy:

        def fetch() -> None:
            copy.seek(0)
            copy.truncate()
            with system.open(name, "rb", block_size=_CHUNK, cache_type="readahead") as file:
                while piece := file.read(_CHUNK):
                    copy.write(piece)

        _answer(fetch)
        copy.flush()
        copy.seek(0)
        return os.dup(copy.fileno())


def _system(path: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the file's name there."""
    scheme = path.partition("://")[0]
    hint = f": pip install 'pela_vl[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else ""
    try:
        import fsspec

        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: {scheme}:// cannot be opened ({' '.join(str(error).split())}){hint}") from None


def _answer(ask: Callable[[], Answer]) -> Answer:
    """Call a file system. A request that fails is made again twice and then raises OSError, whatever its library raises."""
    for pause in (*_PAUSES, None):
        try:
            return ask()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except Exception as error:  # each library has errors of its own
            if pause is None:
                reason = " ".join(str(error).split())
                raise OSError(f"{type(error).__name__}: {reason}" if reason else type(error).__name__) from None
            time.sleep(pause)
    raise AssertionError  # the last turn returns or raises
