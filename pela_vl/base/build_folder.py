"""Output folders: one writer at a time, resumed after an interruption, left alone once complete."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json, remove_stale
from pela_vl.base.system import try_lock


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Create the folder and lock it for this process. The system releases the lock when the process dies.

    Raises:
        UserError: If another run holds it, or no folder can be there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # a folder can be opened, and so locked, on POSIX alone; elsewhere a file beside it is
        handle = (
            os.open(folder, os.O_RDONLY)
            if hasattr(os, "O_DIRECTORY")
            else os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT)
        )
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as a folder ({error.strerror}); choose another output") from None
    try:
        if not try_lock(handle):
            raise UserError(f"{folder}: another run is writing there; wait for it to end")
        yield
    finally:
        os.close(handle)


def claim_folder(folder: Path, request: Mapping[str, Any], what: str, manifest: str, marker: str) -> bool:
    """Check that `folder` is empty or holds this very request, and mark it.

    Args:
        folder: the output.
        request: plain JSON data: everything that determines the content.
        what: name of the content, for errors.
        manifest: name of the file that is written last, with the request under "request".
        marker: name of the file written here, by which an interrupted folder is recognised.

    Returns:
        False if the manifest is there, so that nothing is left to do.

    Raises:
        UserError: If the folder holds another request or anything else.
    """
    remove_stale(folder)
    advice = "choose another output, or remove that folder"
    for name in (manifest, marker):
        if (folder / name).exists():
            try:
                found = json.loads((folder / name).read_text(encoding="utf-8"))["request"]
                different = [
                    f"{key} {_short(found.get(key))}, not {_short(want)}"
                    for key, want in request.items()
                    if found.get(key) != want
                ]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{folder / name}: not readable as a {what}; {advice}") from None
            if different:
                raise UserError(f"{folder}: holds another {what} ({'; '.join(different)}); {advice}")
            if name == manifest:
                return False
            break
    else:
        if any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty and is no {what}; {advice}")
    atomic_json(folder / marker, {"request": request})
    return True


def follow_parent(parent: int) -> None:
    """In a worker process: end when the parent dies, so as not to write beside the next run; leave Ctrl-C to the
    parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
