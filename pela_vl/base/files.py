"""Files and folders that are written completely or not at all, even if the process is killed."""

import errno
import json
import os
import re
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pela_vl.base.errors import UserError
from pela_vl.base.system import is_running

# `.name.<host>-<pid>.tmp` (being written) or `.old` (the previous folder, while its successor takes its place)
_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)\.(?P<kind>tmp|old)$")
_in_use: set[str] = set()
# messages of safetensors, then torch's zip writer, for a full disk, an exhausted quota and a file beyond the size limit
_FULL_SIGNS = (
    "No space left on device",
    "StorageFull",
    "quota exceeded",
    "File too large",
    "PytorchStreamWriter failed",
    "unexpected pos",
    "iostream error",
)


def _host() -> str:
    """A short tag of this machine: process ids mean nothing on another machine that shares the disk."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _sibling(path: str, kind: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{_host()}-{os.getpid()}.{kind}")


def _is_stale(path: str, match: re.Match[str]) -> bool:
    if match["host"] != _host():
        return False
    pid = int(match["pid"])
    if pid == os.getpid():
        return path not in _in_use
    return not is_running(pid)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _sync_folder(folder: str) -> None:
    """Make a rename durable; some file systems cannot, and then there is nothing more to do."""
    try:
        handle = os.open(folder or ".", os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _sync_tree(folder: str) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(root, name)
            if not os.path.islink(file):
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
        _sync_folder(root)


def _new_file(path: str, flags: int) -> int:
    """An opener for `open`: a file that nothing of that name was there before, a link least of all."""
    if os.path.lexists(path):  # left by a dead process with the same id
        _remove(path)
    return os.open(path, flags | os.O_EXCL | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _is_full(error: Exception) -> bool:
    """Whether an error means a full disk; writers in other languages say it only in words."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
    return any(sign in str(error) for sign in _FULL_SIGNS)


@contextmanager
def _disk_errors(path: str | os.PathLike[str], only_full: bool = False) -> Iterator[None]:
    """Turn errors of the disk into a `UserError` naming `path`; with `only_full`, no others than a full disk."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_full(error) and (only_full or not isinstance(error, OSError)):
            raise
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise UserError(f"cannot write {os.fspath(path)}: {reason}") from error


def remove_stale(folder: str | os.PathLike[str]) -> list[str]:
    """Remove or complete what dead processes of this machine left in `folder`; return the removed names.

    A folder whose replacement was interrupted between two renames gets its previous content back.
    """
    removed: list[str] = []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return removed
    for name in names:
        match = _TEMPORARY.match(name)
        path = os.path.join(os.path.realpath(folder), name)
        if match is None or not _is_stale(path, match):
            continue
        target = os.path.join(os.path.realpath(folder), match["name"])
        if match["kind"] == "old" and not os.path.lexists(target):
            with suppress(FileNotFoundError):  # another rank was quicker
                os.rename(path, target)
        else:
            _remove(path)
            removed.append(name)
    return removed


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that takes the name `path` only when the block ends without an exception.

    `mode` is "wb" or "w" (UTF-8). Missing parent folders are created. Of a link, the target is written.

    Raises:
        UserError: Where the disk refuses (full, read-only, a folder in the way).
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', got {mode!r}")
    target = os.path.realpath(path)
    temporary = _sibling(target, "tmp")
    if temporary in _in_use:
        raise RuntimeError(f"{target} is already being written by this process")
    with _disk_errors(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
        stream = open(temporary, mode, encoding=encoding, newline=newline, opener=_new_file)
    _in_use.add(temporary)
    try:
        with _disk_errors(path, only_full=True), stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        with _disk_errors(path):
            os.replace(temporary, target)
        _sync_folder(os.path.dirname(target))
    finally:
        _remove(temporary)
        _in_use.discard(temporary)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """As `atomic_write`, for writers that need a file name: yields the name of an empty file to fill."""
    with atomic_write(path) as stream:
        yield stream.name


def atomic_json(path: str | os.PathLike[str], obj: Any, indent: int | None = 2) -> None:
    """Write an object as UTF-8 JSON, completely or not at all.

    Args:
        path: of the file.
        obj: plain data.
        indent: blanks per level; None: one line.

    Raises:
        ValueError: For NaN or infinity, which are not JSON.
        UserError: Where the disk refuses.
    """
    text = json.dumps(obj, indent=indent, ensure_ascii=False, allow_nan=False)
    with atomic_write(path, "w") as stream:
        stream.write(text + "\n")


@contextmanager
def atomic_folder(path: str | os.PathLike[str], replace: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the name `path` only when the block ends without an exception.

    An existing `path` is an error unless `replace`; then it stays complete until its successor is. Between the two
    renames of a replacement the name is free for an instant: readers call `recover_folder` first. Left-overs of dead
    processes beside `path` are removed.

    Raises:
        UserError: Where the disk refuses, or `path` exists.
    """
    target = os.path.realpath(path)
    temporary, previous = _sibling(target, "tmp"), _sibling(target, "old")
    if temporary in _in_use:
        raise RuntimeError(f"{target} is already being written by this process")
    with _disk_errors(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
    remove_stale(os.path.dirname(target))
    if os.path.lexists(target) and not replace:
        raise UserError(f"{os.fspath(path)} exists already; remove it or name another folder")
    _in_use.update((temporary, previous))
    try:
        with _disk_errors(path):
            os.mkdir(temporary)
        with _disk_errors(path, only_full=True):
            yield Path(temporary)
        with _disk_errors(path):
            _sync_tree(temporary)
            if os.path.lexists(target):
                os.rename(target, previous)
            try:
                os.rename(temporary, target)
            except OSError:
                if os.path.lexists(previous):
                    os.rename(previous, target)
                raise
        _sync_folder(os.path.dirname(target))
        _remove(previous)
    finally:
        _remove(temporary)
        _in_use.difference_update((temporary, previous))


def recover_folder(path: str | os.PathLike[str]) -> bool:
    """Complete an interrupted replacement of `path`, then say whether the folder is there. Call it before reading."""
    target = os.path.realpath(path)
    if not os.path.isdir(target):
        remove_stale(os.path.dirname(target))
    return os.path.isdir(target)
