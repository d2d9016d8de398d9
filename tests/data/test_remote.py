"""Single images at addresses, in memory and from a server, as training reads them."""

import errno
import io
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data import remote
from pela_vl.data.images import MISSING, TRUNCATED, ImageError, ImageReader, read_image
from pela_vl.data.sets.captions import CaptionPairs, RetrievalEval

COUNT = 6


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 7, 3), np.uint8))


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; the first `failures` requests are answered by an error of the server."""

    failures = 0

    def do_GET(self) -> None:
        if Handler.failures > 0:
            Handler.failures -= 1
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=["memory", "http"])
def images(request, tmp_path, monkeypatch):
    """(folder, address) of the same images, one of which is cut."""
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    (tmp_path / "images" / "a b").mkdir(parents=True)
    for number in range(COUNT):
        picture(number).save(tmp_path / "images" / "a b" / f"{number}.png")
    whole = (tmp_path / "images" / "a b" / "0.png").read_bytes()
    (tmp_path / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    if request.param == "memory":
        import fsspec

        system = fsspec.filesystem("memory")
        system.store.clear()
        for path in (tmp_path / "images").rglob("*.png"):
            system.pipe_file(f"/bucket/{path.relative_to(tmp_path / 'images')}", path.read_bytes())
        yield tmp_path / "images", "memory://bucket"
        system.store.clear()
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "images")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "images", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def to_tensor(image, _):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float(), False


def listed(folder: Path) -> Path:
    entries = [{"image": f"a b/{n}.png", "caption": f"a caption {n}", "image_id": n} for n in range(COUNT)]
    (folder / "list.json").write_text(json.dumps(entries))
    return folder / "list.json"


def test_an_address_gives_the_images_of_the_folder(images):
    folder, address = images
    here, there = ImageReader(folder), ImageReader(address + "/", cache_mb=1)
    for number in (0, 3, 3, 5):
        assert np.array_equal(np.asarray(here(f"a b/{number}.png")), np.asarray(there(f"./a b/{number}.png")))


def test_training_and_test_sets_read_from_an_address_also_in_workers(images, tmp_path):
    folder, address = images
    file = listed(tmp_path)
    ours, theirs = (RetrievalEval(file, root, to_tensor) for root in (folder, address))
    for number in range(COUNT):
        assert torch.equal(ours[number], theirs[number])
    pairs = CaptionPairs([file], address, to_tensor, 30, 0)
    # forked workers cannot see what this process's memory:// gets later, but have what it has now
    keys = [(0, number) for number in range(COUNT)]
    loader = torch.utils.data.DataLoader(
        pairs, 2, sampler=keys, num_workers=2, collate_fn=list, multiprocessing_context="fork"
    )
    captions = [sample.caption for batch in loader for sample in batch]
    assert sorted(captions) == sorted(f"a caption {n}" for n in range(COUNT))


def test_an_image_that_is_absent_or_cut_is_the_images_fault(images):
    _, address = images
    with pytest.raises(ImageError, match=f"image {address}/no.png: no such file") as absent:
        read_image(f"{address}/no.png")
    with pytest.raises(ImageError, match=f"image {address}/cut.png: ") as cut:
        read_image(f"{address}/cut.png")
    assert (absent.value.kind, cut.value.kind) == (MISSING, TRUNCATED)


@pytest.mark.parametrize("images", ["http"], indirect=True)
@pytest.mark.parametrize("failures, works", [(1, True), (2, True), (1000, False)])
def test_a_server_that_fails_is_asked_again_and_then_ends_the_run(images, failures, works, monkeypatch):
    _, address = images
    monkeypatch.setattr(Handler, "failures", failures)
    if works:
        assert read_image(f"{address}/a b/1.png").size == (7, 9)
        return
    with pytest.raises(UserError, match="1.png: cannot be read .ClientResponseError: 503") as caught:
        read_image(f"{address}/a b/1.png")
    # an ImageError would be replaced by the next image of the list
    assert not isinstance(caught.value, ImageError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_goes_away_ends_the_run_and_is_no_missing_image(tmp_path, monkeypatch, error):
    picture(0).save(tmp_path / "0.png")

    def broken(*_, **__):
        raise OSError(error, "the disk's own words")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(UserError, match="0.png: cannot be read .the disk's own words.; mend the disk") as caught:
        read_image(tmp_path / "0.png")
    assert not isinstance(caught.value, ImageError)


def test_a_names_accents_may_be_spelled_the_other_way(tmp_path):
    picture(0).save(tmp_path / "cafe\u0301.png")
    reader = ImageReader(tmp_path)
    assert np.array_equal(np.asarray(reader("caf\u00e9.png")), np.asarray(reader("cafe\u0301.png")))
    with pytest.raises(ImageError, match="no such file"):
        reader("th\u00e9.png")


@pytest.mark.parametrize("scheme, extra", [("s3", "s3"), ("gs", "gs"), ("hf", "hf")])
def test_a_library_that_is_not_installed_is_named(monkeypatch, scheme, extra):
    import fsspec

    def absent(path):
        raise ImportError(f"Install the library for\n{scheme}")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(
        UserError, match=rf"{scheme}:// cannot be opened .*: pip install 'pela_vl\[{extra}\]'$"
    ) as caught:
        read_image(f"{scheme}://bucket/x.png")
    assert "\n" not in str(caught.value)


def test_a_file_like_answer_is_whole(images):
    folder, address = images
    assert remote.content(f"{address}/a b/2.png") == (folder / "a b" / "2.png").read_bytes()
    with Image.open(io.BytesIO(remote.content(f"{address}/a b/2.png"))) as image:
        assert np.array_equal(np.asarray(image), np.asarray(picture(2)))
