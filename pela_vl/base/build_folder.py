"""A folder that is built by one run at a time, known again after an interruption, and left alone once finished."""

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
    """Make the folder and hold it for this process; the system lets go of it when the process dies.

    Raises `UserError` when another run holds it or no folder can be there.
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
    """Check that `folder` is empty or holds this very request; return whether work is left.

    request: plain JSON data, all that decides the content. manifest: the file written last, with the request under
    "request". marker: the file that is written here, by which a folder that was cut short is known again. Raises
    `UserError` for a folder that holds another request or anything else; `what` names the content in the message.
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
    """In a worker: end when the parent is killed, so as not to write beside the next run; leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
