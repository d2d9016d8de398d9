"""Reading shards: the same samples as from loose files, from any number of workers, from any position; and damage."""

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from shard_files import listed_samples, write_index, write_shards

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Collate
from pela_vl.data.loader import BadImageCounter, EpochSampler, make_loader
from pela_vl.data.sets import shards as module
from pela_vl.data.sets.captions import CaptionPairs
from pela_vl.data.sets.shard_pairs import ShardPairs, training_pairs
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import train_transform

SIZES = (7, 9, 3, 5)


@pytest.fixture
def samples(listed):
    return listed_samples(listed / "lists/scenes_pretrain.json", listed)


@pytest.fixture
def folder(samples, tmp_path) -> Path:
    return write_shards(tmp_path / "shards", samples, SIZES)


def pairs(*folders) -> ShardPairs:
    return ShardPairs(folders, train_transform(16), seed=5)


def batches(data, workers=0, start=0, epochs=1):
    sampler = EpochSampler(len(data), 5, seed=5, order=data.order)
    loader = make_loader(data, sampler, Collate(Tokenizer.load("scenes"), 30, 0.15, 5), workers)
    result = []
    for epoch in range(epochs):
        sampler.set_position(epoch, start if epoch == 0 else 0)
        result += list(loader)
    return result


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True) if torch.is_tensor(x))


def test_samples_are_those_of_the_loose_files(listed, folder):
    loose = CaptionPairs([listed / "lists/scenes_pretrain.json"], listed, train_transform(16), seed=5)
    data = pairs(folder)
    assert len(data) == len(loose) == 24
    for key in [(epoch, i) for epoch in (0, 3) for i in (0, 6, 7, 18, 19, 23, 2)]:
        a, b = data[key], loose[key]
        assert torch.equal(a.image, b.image)
        assert (a.caption, a.key, a.index, a.bad) == (b.caption, b.key, b.index, b.bad)


def test_equal_pictures_of_a_source_have_equal_ids(samples, tmp_path):
    changed = [(picture, record | {"image_id": number % 3}) for number, (picture, record) in enumerate(samples[:6])]
    changed += [(picture, record | {"source": "other", "image_id": 0}) for picture, record in samples[6:7]]
    changed += [(picture, {"caption": "no id"}) for picture, _ in samples[7:9]]
    data = pairs(write_shards(tmp_path / "s", changed, [9]))
    ids = [data[(0, i)].image_id for i in range(9)]
    assert ids[:3] == ids[3:6] and len(set(ids)) == 6 and all(0 <= i < 2**63 for i in ids)


def test_folders_follow_each_other(samples, tmp_path):
    parts = [
        write_shards(tmp_path / name, part, [len(part)]) for name, part in (("a", samples[:4]), ("b", samples[4:9]))
    ]
    data = pairs(*parts)
    whole = pairs(write_shards(tmp_path / "whole", samples[:9], [9]))
    assert len(data) == 9
    assert all(torch.equal(data[(1, i)].image, whole[(1, i)].image) for i in range(9))


@pytest.mark.parametrize("workers", [1, 3])
def test_any_workers_and_any_start_give_the_same_batches(folder, workers):
    alone = batches(pairs(folder), epochs=2)
    assert sorted(i for b in alone[:5] for i in b.indices.tolist()) == list(range(24))
    assert all(map(same, alone, batches(pairs(folder), workers, epochs=2)))
    resumed = batches(pairs(folder), workers, start=3, epochs=2)
    assert len(resumed) == 7 and all(map(same, alone[3:], resumed))


def test_skipped_batches_are_neither_decoded_nor_read(folder, monkeypatch):
    data = pairs(folder)
    seen = []
    read = data._read
    monkeypatch.setattr(data, "_read", lambda number: seen.append(number) or read(number))
    (last,) = batches(data, start=4)
    assert seen == last.indices.tolist() and len(seen) == 4
    opened = {index for index in data.reader._open}
    assert len(opened) <= 2


def test_a_shard_is_read_once_from_front_to_back(folder, monkeypatch):
    scanned = Counter()
    scan = module.scan_shard
    monkeypatch.setattr(module, "scan_shard", lambda shard, handle: scanned.update([shard.path]) or scan(shard, handle))
    data = pairs(folder)
    for _ in range(2):
        batches(data)
    assert set(scanned.values()) == {1} and len(scanned) == 4
    tight = module.ShardReader(data.reader.shards, max_open=1)
    assert [tight.read(i).name for i in range(24)] == [data.reader.read(i).name for i in range(24)]
    assert len(tight._open) == 1


def test_a_reader_goes_to_workers_without_its_files(folder):
    data = pairs(folder)
    before = data[(0, 20)]
    copy = pickle.loads(pickle.dumps(data))
    assert not copy.reader._open and torch.equal(copy[(0, 20)].image, before.image)


def test_bad_members_are_replaced_and_counted(samples, tmp_path):
    samples[3] = b"<html>", samples[3][1]
    samples[4] = samples[4][0], samples[4][1] | {"caption": ["...", ""]}
    samples[8] = samples[8][0], samples[8][1] | {"caption": ["...", "a word"]}
    folder = write_shards(tmp_path / "s", samples, SIZES)
    data = pairs(folder)
    sample = data[(0, 3)]
    assert (sample.index, sample.key) == (5, (0, 3))
    path = folder / "shard-000000.tar"
    assert [name for name, _ in sample.bad] == [f"{path}/000000003.jpg", f"{path}/000000004.jpg"]
    assert sample.bad[1][1] == "has no caption with a word"
    assert data[(0, 8)].caption == "a word" and not data[(0, 8)].bad
    counter = BadImageCounter(0.01, min_seen=24)
    with pytest.raises(UserError, match=r"2 of 24 samples .*shard-000000\.tar/00000000[34]\.jpg"):
        for batch in batches(data):
            counter.update(batch)


def test_nothing_readable_is_an_error(samples, tmp_path):
    data = pairs(write_shards(tmp_path / "s", [(b"x", record) for _, record in samples], SIZES))
    with pytest.raises(UserError, match="24 entries in a row without a readable image.*write the shards again"):
        data[(0, 2)]


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def flip_header(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def misname(path):
    """Another name for the second member, in a header that is right in itself."""
    content = path.read_bytes().replace(b"000000000.json", b"00000000x.json")
    at = content.index(b"00000000x.json")
    header = bytearray(content[at : at + 512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(content[:at] + header + content[at + 512 :])


def damage_record(path):
    path.write_bytes(path.read_bytes().replace(b'{"caption"', b'["caption"'))


@pytest.mark.parametrize(
    "damage, message",
    [
        (Path.unlink, "no such shard, but index.json names it"),
        (cut, "has 5000 bytes, index.json says .* changed or cut"),
        (flip_header, "no tar header at byte 0: the shard is damaged"),
        (misname, "member 00000000x.json: an image and its record do not stand together"),
        (damage_record, "the record of 000000000.jpg is not readable"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_one_clear_error(folder, damage, message, workers):
    path = folder / "shard-000000.tar"
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        batches(pairs(folder), workers)
    text = str(caught.value)
    del caught
    assert text.startswith(str(path)) and "\n" not in text


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_a_shard_that_goes_during_the_run(folder, workers, damage):
    data = pairs(folder)
    damage(folder / "shard-000002.tar")
    with pytest.raises(UserError, match="shard-000002.tar: (no such shard|is cut|holds)") as caught:
        batches(data, workers)
    del caught


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "line 1, column 2: malformed JSON: .*; write it again"),
        ("[]", "damaged index"),
        ('{"format": "pela_vl shards 2"}', "format 'pela_vl shards 2', 'pela_vl shards 1' is wanted"),
        ('{"format": "pela_vl shards 1", "samples": 0, "shards": []}', "damaged index, its counts"),
        (None, "no such file; so .* is no finished folder of shards"),
    ],
)
def test_a_folder_without_a_usable_index(folder, content, message):
    file = folder / "index.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        pairs(folder)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_an_index_that_does_not_fit(folder):
    rows = json.loads((folder / "index.json").read_text())["shards"]
    write_index(folder, rows, samples=23)
    with pytest.raises(UserError, match="counts do not add up"):
        pairs(folder)
    rows[1]["samples"] += 1
    write_index(folder, rows)
    with pytest.raises(UserError, match=r"shard-000001\.tar: holds 9 samples, index.json says 10"):
        pairs(folder)[(0, 8)]
    rows[0]["name"] = "../shard-000000.tar"
    write_index(folder, rows)
    with pytest.raises(UserError, match="not a plain file name"):
        pairs(folder)


def test_training_takes_lists_or_shards_not_both(listed, folder):
    file = listed / "lists/scenes_pretrain.json"
    assert isinstance(training_pairs([file], listed, None), CaptionPairs)
    assert isinstance(training_pairs([folder], listed, None), ShardPairs)
    with pytest.raises(UserError, match="both folders of shards .* and files"):
        training_pairs([file, folder], listed, None)
