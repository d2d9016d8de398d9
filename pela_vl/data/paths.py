"""Paths of images below an image root: the one rule that every reader follows.

A path is checked by its spelling. It must stay below the root; an absolute path is accepted when it lies there. Links
are followed. A root may be an address (s3://bucket/images).
"""

import errno
import os
import posixpath
import stat
import unicodedata

from pela_vl.base.errors import UserError
from pela_vl.data.remote import is_remote

PathLike = str | os.PathLike[str]

# these mean that there is no such file; other errors mean that the disk cannot be read
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)


def resolve(root: PathLike, path: str) -> str:
    """Join an image root and the path of an entry; the result is absolute, nothing is looked up on disk.

    Raises `UserError` for a path that leaves the root by its own parts.
    """
    base = absolute(root)
    if "\0" in path:
        raise UserError(f"image path {path!r} holds a NUL character; mend the entry")
    if is_remote(base):
        return _resolve_address(base, path)
    joined = os.path.normpath(os.path.join(base, path))
    if joined == base or not joined.startswith(base.rstrip(os.sep) + os.sep):
        what = "is absolute and lies elsewhere than" if os.path.isabs(path) else "is not below"
        raise UserError(f"image path {path!r} {what} the image root {base}; correct the entry or the root")
    return joined


def absolute(root: PathLike) -> str:
    """An image root that does not depend on the working folder; an address is one already."""
    return os.fspath(root).rstrip("/") if is_remote(root) else os.path.abspath(root)


def _resolve_address(base: str, path: str) -> str:
    relative = posixpath.normpath(path.removeprefix(f"{base}/"))
    if (
        relative.startswith(("/", "../"))
        or relative in (".", "..")
        or is_remote(path)
        and not path.startswith(f"{base}/")
    ):
        raise UserError(f"image path {path!r} is not below the image root {base}; correct the entry or the root")
    return f"{base}/{relative}"


def below(root: PathLike, path: str) -> str:
    """As `resolve`, but relative to the root and with forward slashes, as in lists."""
    return os.path.relpath(resolve(root, path), os.path.abspath(root)).replace(os.sep, "/")


def find(root: PathLike, path: str) -> str | None:
    """The path relative to the root as it is spelt on the disk; None when there is no such file.

    Accented letters may be composed (NFC) in the entry and decomposed (NFD, as macOS writes them) on the disk, or the
    reverse. All spellings are tried.

    Raises:
        UserError: If the path leaves the root, or the disk cannot be read.
    """
    relative = below(root, path)
    for spelling in dict.fromkeys((relative, *(unicodedata.normalize(form, relative) for form in ("NFC", "NFD")))):
        if is_file(os.path.join(root, spelling)):
            return spelling
    return None


def is_file(path: PathLike) -> bool:
    """Whether a file is there.

    Raises:
        UserError: If the disk cannot tell: no permission, input or output error, stale mount.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except ValueError:  # a NUL or a lone surrogate that no file name can hold
        return False
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise unreadable(path, error) from None


def unreadable(path: PathLike, error: OSError) -> UserError:
    """The error for a file that exists but cannot be read."""
    return UserError(
        f"{os.fspath(path)}: cannot be read ({error.strerror or error}); mend the disk or the permissions, then run again"
    )


def why_absent(root: PathLike, path: str) -> str:
    """Why `find` found nothing, for a message."""
    full = resolve(root, path)
    if "\\" in path:
        return f"{full}: no such image; its path has back slashes, write it with forward slashes"
    if is_remote(full):
        return f"{full}: no such image"
    if os.path.islink(full):
        return f"{full}: is a link to {os.readlink(full)}, which is not there"
    if not os.path.isdir(root):
        return f"{os.fspath(root)}: no such folder of images"
    if os.path.isdir(full):
        return f"{full}: is a folder, not an image"
    return f"{full}: no such image"
