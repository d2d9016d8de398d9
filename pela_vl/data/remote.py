"""Files at an address (s3://, gs://, hf://, http://, memory://) through fsspec, beside files of this machine."""

import os
import re
import tempfile
from typing import Any

from pela_vl.base.errors import UserError

PathLike = str | os.PathLike[str]
_CHUNK = 8 * 2**20  # bytes copied at a time
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")
_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf", "http": "http", "https": "http"}


def is_remote(path: PathLike) -> bool:
    """Whether a path is an address with a scheme."""
    return bool(_SCHEME.match(os.fspath(path)))


def content(path: PathLike) -> bytes:
    """A small file whole. Raises OSError as `open` does."""
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    system, name = _system(os.fspath(path))
    return _answer(os.fspath(path), lambda: system.cat_file(name))


def size_of(path: PathLike) -> int | None:
    """Bytes of a file, None if there is none."""
    if not is_remote(path):
        return os.path.getsize(path) if os.path.isfile(path) else None
    system, name = _system(os.fspath(path))
    try:
        return _answer(os.fspath(path), lambda: system.size(name))
    except FileNotFoundError:
        return None


def copied(path: str) -> int:
    """A handle of a temporary copy, which has no name and goes when the handle is closed. Raises OSError as `open` does."""
    system, name = _system(path)
    with tempfile.TemporaryFile() as copy:

        def fetch() -> None:
            with system.open(name, "rb", block_size=_CHUNK, cache_type="readahead") as file:
                while piece := file.read(_CHUNK):
                    copy.write(piece)

        _answer(path, fetch)
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


def _answer(path: str, ask: Any) -> Any:
    """What a file system answers; errors of its library that are no OSError become one."""
    try:
        return ask()
    except OSError:
        raise
    except Exception as error:  # each library has errors of its own
        raise OSError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from None
