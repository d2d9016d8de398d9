"""A lock on a run's folder: one writing process at a time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pela_vl.base.errors import UserError
from pela_vl.base.system import read_at, wait_for_lock

LOCK_NAME = ".lock"
_PATIENCE = 5.0  # seconds: workers of a process that was killed hold its lock until they notice
_held: dict[str, int] = {}


@contextmanager
def hold_run_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Create a run's folder and lock it for this process until the block ends or the process dies.

    Training, resuming and evaluating all lock it, on process 0 only. A process that holds the folder already may enter
    again.

    Raises:
        UserError: If another process holds it, or no folder can be there.
    """
    name = os.path.realpath(folder)
    if name in _held:
        yield
        return
    is_new = not os.path.isdir(name)
    handle = _lock(name, folder)
    try:
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        _held[name] = handle
        yield
    except BaseException:
        if is_new and os.listdir(name) == [LOCK_NAME]:  # nothing was written, so remove the folder
            with suppress(OSError):
                os.unlink(os.path.join(name, LOCK_NAME))
                os.rmdir(name)
        raise
    finally:
        _held.pop(name, None)
        os.close(handle)


def _lock(name: str, folder: str | os.PathLike[str]) -> int:
    """Create a folder, open its lock file and lock it; `folder` is the path as the user wrote it."""
    path = os.path.join(name, LOCK_NAME)
    while True:
        try:
            os.makedirs(name, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise UserError(
                f"{os.fspath(folder)}: cannot be used as a run's folder ({error.strerror}); set another output"
            ) from None
        if not wait_for_lock(handle, _PATIENCE):
            holder = read_at(handle, 200, 0)
            os.close(handle)
            who = f" ({holder.decode(errors='replace').strip()})" if holder.strip() else ""
            raise UserError(
                f"{os.fspath(folder)}: another process{who} is writing into this run; wait for it to end, or set another output"
            )
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # the holder removed the file in the meantime


def _let_go_in_child() -> None:
    """Close the locks in a forked worker, which must not keep the lock of a process that has died."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
