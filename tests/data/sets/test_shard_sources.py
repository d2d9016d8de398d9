"""Shards at addresses, and how well a batch is mixed."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from shard_files import write_shards

from pela_vl.base.errors import UserError
from pela_vl.data.corpus.outputs import AppendedFiles, ShardWriter
from pela_vl.data.corpus.records import Finding
from pela_vl.data.corpus.settings import Shards
from pela_vl.data.corpus.state import State
from pela_vl.data.sets import shards as module
from pela_vl.data.sets.shard_order import epoch_order
from pela_vl.data.sets.shard_pairs import training_pairs
from pela_vl.data.sets.shards import ShardReader, is_shard_folder, read_index

SIZES = (3, 4, 2)


@pytest.fixture
def folder(tmp_path) -> Path:
    samples = [(f"picture {k}".encode() * (k + 1), {"caption": f"caption {k}", "image_id": k}) for k in range(9)]
    return write_shards(tmp_path / "corpus", samples, SIZES)


@pytest.fixture(params=["memory", "http"])
def address(request, folder):
    if request.param == "memory":
        import fsspec

        system = fsspec.filesystem("memory")
        system.store.clear()
        for path in folder.iterdir():
            system.pipe_file(f"/bucket/corpus/{path.name}", path.read_bytes())
        yield "memory://bucket/corpus"
        system.store.clear()
        return

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/corpus"
    server.shutdown()
    server.server_close()


def test_an_address_gives_the_samples_of_the_folder(folder, address):
    assert is_shard_folder(address) and is_shard_folder(folder) and not is_shard_folder(f"{address}/list.json")
    here, there = ShardReader(read_index(folder)), ShardReader(read_index(address), max_open=1)
    assert len(there) == 9
    for number in (0, 8, 3, 1, 7, 2):
        a, b = here.read(number), there.read(number)
        assert (a.jpeg, a.record) == (b.jpeg, b.record) and b.name.startswith(address)
    assert len(there._open) == 1
    assert training_pairs([address], ".", None, 30, 0).sizes == list(SIZES)


def test_what_is_not_there_or_cannot_be_opened_is_one_line(address, tmp_path):
    with pytest.raises(UserError, match="index.json: no such file; so .* is no finished folder of shards"):
        read_index(f"{address}-2")
    with pytest.raises(UserError, match="nothing://x/index.json: nothing:// cannot be opened"):
        read_index("nothing://x")


def test_the_shard_given_up_is_the_one_that_was_used_least_lately(folder):
    reader = ShardReader(read_index(folder), max_open=2)
    for number in (0, 3, 0, 7):  # shards 0, 1, 0, 2: 1 goes
        reader.read(number)
    assert list(reader._open) == [0, 2]


def test_a_worker_keeps_32_shards_open():
    assert module._MAX_OPEN == 32


def written(folder: Path, kinds: list[str], shards: Shards) -> list[list[str]]:
    """The source of every sample of every shard, as the writer scatters them."""
    folder.mkdir()
    state = State(folder / "state.sqlite")
    files = AppendedFiles(folder / "out", state)
    writer = ShardWriter(files, shards)
    for number, kind in enumerate(kinds):
        writer.add(Finding(kind, number, 1, [], captions=["a caption"], jpeg=b"x"), number)
    writer.end_files()
    files.close()
    names = [name for name in files.entries if name.endswith(".tar")]
    rows = [
        {"name": name, "samples": files.entries[name][1], "bytes": files.entries[name][0]} for name in sorted(names)
    ]
    index = {"format": module.FORMAT, "shards": rows, "samples": len(kinds)}
    (folder / "out" / "index.json").write_text(json.dumps(index))
    found = read_index(folder / "out")
    reader = ShardReader(found)
    starts = np.cumsum([0, *(shard.samples for shard in found)])
    return [[reader.read(k).record["source"] for k in range(a, b)] for a, b in zip(starts, starts[1:], strict=False)]


def test_the_batch_of_one_of_8_processes_has_several_shards_and_sources(tmp_path):
    """COCO, then Visual Genome, then three times as much of the web, in shards of 50: batches of 64 on 8 processes."""
    kinds = ["coco"] * 800 + ["vg"] * 800 + ["web"] * 4800

    def mixture(shards: Shards, name: str, lanes: int) -> tuple[float, float]:
        """Of the batches of one process: shards in it, and the share of those that come from one source alone."""
        content = written(tmp_path / name, kinds, shards)
        sources = np.concatenate([np.asarray(part) for part in content])
        number = np.repeat(np.arange(len(content)), [len(part) for part in content])
        # the window has the size of a third of a shard a lane, as it has of shards of 5000
        order = epoch_order([len(part) for part in content], 1, 0, 64, lanes, window=lanes * 17)
        parts = order[: len(order) // 64 * 64].reshape(-1, 8)
        in_shards = [len(set(number[part])) for part in parts]
        pure = [len(set(sources[part])) == 1 for part in parts]
        return float(np.mean(in_shards)), float(np.mean(pure))

    in_order = mixture(Shards(samples=50, open=1), "in order", 8)
    scattered = mixture(Shards(samples=50, open=32), "scattered", 16)
    assert in_order[0] < 1.7 and in_order[1] > 0.85
    assert scattered[0] > 2.4 and scattered[1] < 0.75
