"""Files and folders appear whole or not at all, also when the process is killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pela_vl.base import files
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_folder, atomic_json, atomic_path, atomic_write, recover_folder, remove_stale


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_write_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_write(target, "w") as stream:
        stream.write("one\n")
        stream.flush()
        assert not target.exists()
    assert target.read_bytes() == b"one\n"
    assert names(target.parent) == ["a.txt"]


def test_an_exception_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_write(target) as stream:
        stream.write(b"half")
        raise KeyError("stop")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_ordinary_permissions_and_links(tmp_path: Path) -> None:
    """A temporary file must not leave its private mode behind, nor replace a link by a file."""
    plain, real, link = tmp_path / "plain", tmp_path / "real", tmp_path / "link"
    plain.write_text("")
    link.symlink_to(real)
    atomic_json(link, {"a": "ä"})
    assert link.is_symlink() and json.loads(real.read_text(encoding="utf-8")) == {"a": "ä"}
    assert real.stat().st_mode == plain.stat().st_mode


def test_json_refuses_nan_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        atomic_json(tmp_path / "a.json", {"a": float("nan")})
    assert names(tmp_path) == []


def test_disk_errors_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write .*file/a: "):
        atomic_json(tmp_path / "file" / "a", 1)
    with pytest.raises(UserError, match="cannot write .*folder: "):
        atomic_json(tmp_path / "folder", 1)
    with pytest.raises(UserError, match="No space left"), atomic_write(tmp_path / "b") as stream:
        stream.write(b"x")
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["file", "folder"]


def test_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    with pytest.raises(KeyError), atomic_folder(target) as folder:
        (folder / "half").write_text("")
        raise KeyError("stop")
    assert names(tmp_path) == []
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not target.exists()
        assert remove_stale(tmp_path) == []  # our own unfinished work is no left-over
    assert (target / "sub" / "a").read_text() == "1"
    with pytest.raises(UserError, match="exists already"), atomic_folder(target):
        pass
    with atomic_folder(target, replace=True) as folder:
        (folder / "b").write_text("2")
        assert (target / "sub" / "a").exists()
    assert names(target) == ["b"] and names(tmp_path) == ["ckpt"]


def test_a_failed_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(KeyError), atomic_folder(target, replace=True):
        raise KeyError("stop")
    assert names(tmp_path) == ["ckpt"] and names(target) == ["a"]


KILLED = """
import sys, time
from pathlib import Path
from pela_vl.base.files import atomic_folder, atomic_write
root = Path(sys.argv[1])
with atomic_folder(root / "ckpt", replace=True) as folder, atomic_write(root / "a.bin") as stream:
    (folder / "half").write_text("half")
    stream.write(b"half")
    stream.flush()
    (root / "ready").write_text("")
    time.sleep(60)
"""


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "a.bin").write_bytes(b"old")
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(files.__file__).parents[2])
    while not (tmp_path / "ready").exists():
        assert child.poll() is None
        time.sleep(0.02)
    assert remove_stale(tmp_path) == []  # a live process's work is left alone
    assert len(names(tmp_path)) == 5
    child.kill()
    child.wait()
    assert (tmp_path / "a.bin").read_bytes() == b"old" and names(tmp_path / "ckpt") == []
    with atomic_folder(tmp_path / "ckpt", replace=True) as folder:
        (folder / "b").write_text("")
    assert names(tmp_path) == ["a.bin", "ckpt", "ready"]
    assert names(tmp_path / "ckpt") == ["b"]


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_kill_between_the_two_renames_is_settled(tmp_path: Path) -> None:
    old = tmp_path / f".ckpt.{files._host()}-{dead_pid()}.old"
    old.mkdir()
    (old / "a").write_text("1")
    (tmp_path / f".ckpt.{files._host()}-{dead_pid()}.tmp").mkdir()
    assert recover_folder(tmp_path / "ckpt")
    assert names(tmp_path) == ["ckpt"] and names(tmp_path / "ckpt") == ["a"]
    assert not recover_folder(tmp_path / "absent")


def test_leftovers_of_other_machines_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / f".ckpt.00000000-{dead_pid()}.tmp").mkdir()
    (tmp_path / ".config.tmp").write_text("")
    assert remove_stale(tmp_path) == [] and len(names(tmp_path)) == 2


def test_a_link_at_the_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    """Someone else who may write into the folder, and knows the name to come, must not choose what is overwritten."""
    target, precious = tmp_path / "a.txt", tmp_path / "precious"
    precious.write_text("mine")
    Path(files._sibling(str(target), "tmp")).symlink_to(precious)
    with atomic_write(target, "w") as stream:
        stream.write("new")
    assert precious.read_text() == "mine" and target.read_text() == "new" and not target.is_symlink()


def test_a_link_that_comes_back_is_an_error(tmp_path: Path, monkeypatch) -> None:
    target, precious = tmp_path / "a.txt", tmp_path / "precious"
    precious.write_text("mine")
    link = Path(files._sibling(str(target), "tmp"))
    link.symlink_to(precious)
    monkeypatch.setattr(files, "_remove", lambda path: None)
    with pytest.raises(UserError, match="cannot write"), atomic_write(target, "w") as stream:
        stream.write("new")
    assert precious.read_text() == "mine" and not target.exists()


def test_a_path_to_fill_takes_its_name_at_the_end(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as name:
        Path(name).write_text("whole")
        assert names(tmp_path) == [Path(name).name]
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "whole"


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_folder, atomic_write
from pela_vl.checkpoints.tensor_files import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
tensors, root = {"a": torch.ones(100_000)}, Path(sys.argv[1])
def stream():
    with atomic_write(root / "stream") as stream:
        stream.write(bytes(200_000))
def folder(name, write):
    with atomic_folder(root / name, replace=True) as folder:
        write(folder / "weights")
for write in (
    stream,
    lambda: write_tensors(root / "tensors", tensors),
    lambda: folder("resume", lambda path: save_file(tensors, path)),
    lambda: folder("torch", lambda path: torch.save(tensors, path)),
):
    try:
        write()
    except UserError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    """A file that may not grow stands for a disk that is full: the writers fail alike."""
    kinds = ["stream", "tensors", "resume", "torch"]
    old = [tmp_path / "stream", tmp_path / "tensors", tmp_path / "resume" / "weights", tmp_path / "torch" / "weights"]
    for file in old:
        file.parent.mkdir(exist_ok=True)
        file.write_text("old")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and done.returncode == 0, done.stderr
    for kind, line in zip(kinds, lines, strict=True):
        assert line.startswith(f"cannot write {tmp_path / kind}: "), line
    assert names(tmp_path) == sorted(kinds) and all(file.read_text() == "old" for file in old)
