import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Collate, Sample, mask_tokens
from pela_vl.data.images import ImageError
from pela_vl.data.loader import BadImageCounter, EpochSampler, make_image_loader, make_loader, split_range
from pela_vl.data.normalization import CLIP
from pela_vl.data.sets.captions import CaptionPairs, RetrievalEval
from pela_vl.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from pela_vl.data.transforms import eval_transform, train_transform
from pela_vl.training.runner import normalized


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer([*SPECIAL_TOKENS, *(f"w{i}" for i in range(95))])


@pytest.fixture
def corpus(tmp_path):
    content = []
    for i in range(11):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        words = [f"w{(7 * i + j) % 95}" for j in range(1 + i)]
        content.append({"image": f"{i}.png", "caption": [" ".join(words), " ".join(words[::-1])]})
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path


def training_data(corpus):
    return CaptionPairs([corpus / "list.json"], corpus, train_transform(8), seed=5)


def same(a, b):
    names = ("images", "ids", "mask", "masked_ids", "labels", "image_ids", "indices")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


# --- order


def flat(batches):
    return [key for batch in batches for key in batch]


def test_an_epoch_is_a_permutation_drawn_from_seed_and_epoch():
    sampler = EpochSampler(10, 3, seed=1)
    orders = {}
    for epoch in range(3):
        sampler.set_position(epoch)
        orders[epoch] = flat(sampler)
        assert sorted(orders[epoch]) == [(epoch, i) for i in range(10)]
        assert orders[epoch] == flat(sampler)
    indices = [[i for _, i in order] for order in orders.values()]
    assert indices[0] != indices[1] != indices[2]
    assert [i for _, i in flat(EpochSampler(10, 3, seed=2))] != indices[0]


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_position_goes_on_exactly_there(drop_last):
    whole = EpochSampler(10, 3, seed=1, drop_last=drop_last)
    whole.set_position(4)
    batches = list(whole)
    assert len(batches) == len(whole) == (3 if drop_last else 4)
    for start in range(len(whole) + 1):
        resumed = EpochSampler(10, 3, seed=1, drop_last=drop_last)
        resumed.set_position(4, start)
        assert list(resumed) == batches[start:]
    with pytest.raises(ValueError, match="an epoch has"):
        whole.set_position(0, len(whole) + 1)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 12, 13, 23, 24])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_processes_share_the_global_batches_of_one_process(n, world, drop_last):
    if drop_last and n < 12:
        with pytest.raises(UserError, match="make no batch"):
            EpochSampler(n, 12 // world, 0, world, drop_last=drop_last)
        return
    processes = [list(EpochSampler(n, 12 // world, rank, world, seed=3, drop_last=drop_last)) for rank in range(world)]
    alone = list(EpochSampler(n, 12, seed=3, drop_last=drop_last))
    assert len({len(batches) for batches in processes}) == 1
    for step, batch in enumerate(alone):
        parts = [batches[step] for batches in processes]
        assert len({len(part) for part in parts}) == 1 and parts[0]
        union = flat(parts)
        assert union[: len(batch)] == batch
        assert len(union) - len(batch) == -len(batch) % world
    assert len(flat(flat(processes))) >= (n // 12 * 12 if drop_last else n)


def test_senseless_samplers_are_refused():
    with pytest.raises(UserError, match="0 samples make no batch"):
        EpochSampler(0, 4)
    for arguments in ((5, 0), (5, 1, 2, 2), (5, 1, -1, 2)):
        with pytest.raises(ValueError):
            EpochSampler(*arguments)


def test_ranges_cover_everything_once():
    for n in (0, 1, 5, 16, 69):
        for world in (1, 2, 3, 8):
            parts = [split_range(n, rank, world) for rank in range(world)]
            assert [i for part in parts for i in part] == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


# --- batches


def samples_of(captions, epoch=0):
    return [
        Sample(torch.full((3, 4, 4), float(i)), caption, 10 + i, (epoch, i), i) for i, caption in enumerate(captions)
    ]


def test_batch_holds_its_samples_in_order(tokenizer):
    batch = Collate(tokenizer, 4)(samples_of(["w0 w1", "w2", "w3 w4 w5 w6"]))
    assert len(batch) == 3
    assert batch.ids.tolist() == [[2, 5, 6, 0], [2, 7, 0, 0], [2, 8, 9, 10]]
    assert batch.mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.masked_ids is None and batch.labels is None
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 2] and batch.images.shape == (3, 3, 4, 4)
    assert batch.image_ids.tolist() == [10, 11, 12] and batch.indices.tolist() == [0, 1, 2]
    assert (batch.replaced, batch.bad) == (0, ())


def test_batch_moves_with_everything(tokenizer):
    batch = Collate(tokenizer, 4, 0.15)(samples_of(["w0"])).to("meta")
    assert all(value.device.type == "meta" for value in vars(batch).values() if isinstance(value, torch.Tensor))
    assert Collate(tokenizer, 4)(samples_of(["w0"])).to("meta").labels is None


def test_masking_has_berts_shares(tokenizer):
    ids = torch.tensor(np.random.default_rng(0).integers(5, 100, (1000, 40)))
    ids[:, 0], ids[:, 30:] = tokenizer.cls_id, tokenizer.pad_id
    masked, labels = mask_tokens(ids, tokenizer, 0.15, np.random.default_rng(1))
    chosen = labels != -100
    assert not chosen[:, 0].any() and not chosen[:, 30:].any()
    assert torch.equal(masked[~chosen], ids[~chosen]) and torch.equal(labels[chosen], ids[chosen])
    assert chosen[:, 1:30].float().mean() == pytest.approx(0.15, abs=0.01)
    hidden = masked[chosen] == tokenizer.mask_id
    kept = masked[chosen] == ids[chosen]
    assert hidden.float().mean() == pytest.approx(0.8, abs=0.03)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.02)
    strangers = masked[chosen][~hidden & ~kept]
    assert strangers.min() < 15 and strangers.max() > 90 and strangers.max() < tokenizer.vocab_size


def test_masking_nothing_and_everything(tokenizer):
    samples = samples_of(["w0 w1 w2", "w3"])
    none, every = (Collate(tokenizer, 9, probability)(samples) for probability in (0, 1))
    assert torch.equal(none.masked_ids, none.ids) and (none.labels == -100).all()
    assert every.labels.tolist() == [[-100, 5, 6, 7], [-100, 8, -100, -100]]
    with pytest.raises(ValueError, match="mlm_probability"):
        Collate(tokenizer, 9, 1.5)


def test_mask_is_a_function_of_seed_and_keys(tokenizer):
    text = [" ".join(f"w{i}" for i in range(30))] * 4

    def draw(seed, epoch):
        return Collate(tokenizer, 40, 0.3, seed)(samples_of(text, epoch)).masked_ids

    assert torch.equal(draw(1, 0), draw(1, 0))
    assert not torch.equal(draw(1, 0), draw(2, 0)) and not torch.equal(draw(1, 0), draw(1, 1))


# --- loading


def test_workers_change_nothing_and_the_position_is_kept(corpus, tokenizer):
    def batches(workers, *positions):
        data = training_data(corpus)
        sampler = EpochSampler(len(data), 4, seed=2)
        loader = make_loader(data, sampler, Collate(tokenizer, 9, 0.15), workers)
        assert len(loader) == 3
        result = []
        for position in positions:
            sampler.set_position(*position)
            result += list(loader)
        return result

    alone = batches(0, (0,), (1,))
    assert [len(batch) for batch in alone] == [4, 4, 3] * 2
    for others in (batches(2, (0,), (1,)), [*alone[:2], *batches(2, (0, 2), (1, 0))]):
        assert all(map(same, alone, others)) and len(others) == 6
    assert not same(alone[0], alone[3])


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_states(corpus, tokenizer, workers):
    data = training_data(corpus)
    loader = make_loader(data, EpochSampler(len(data), 4), Collate(tokenizer, 9, 0.15), workers)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    list(loader)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate() and np.array_equal(before[2], np.random.get_state()[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_user_errors_come_out_of_workers_as_they_are(corpus, workers):
    data = RetrievalEval(corpus / "list.json", corpus, eval_transform(8))
    (corpus / "7.png").write_bytes(b"")
    loader = make_image_loader(data, range(11), 4, workers)
    seen = []
    with pytest.raises(ImageError) as caught:
        for _, indices in loader:
            seen += indices.tolist()
    message = str(caught.value)
    del caught  # its traceback holds the loader, whose workers would stop late if collected with a cycle
    assert message == f"image {corpus / '7.png'}: the file is empty, not an image"
    assert seen == [0, 1, 2, 3]


def test_image_loader_keeps_the_order(corpus):
    data = RetrievalEval(corpus / "list.json", corpus, eval_transform(8))
    for part in (split_range(11, 1, 2), split_range(11, 0, 20)):
        batches = list(make_image_loader(data, part, 4))
        assert [i for _, indices in batches for i in indices.tolist()] == list(part)
        images = [image for images, _ in batches for image in images]
        assert len(images) == len(part) and all(map(torch.equal, images, (data[i] for i in part)))


# --- unreadable images


def test_replaced_pictures_are_counted_to_the_share(corpus, tokenizer):
    data = training_data(corpus)
    (corpus / "3.png").unlink()
    (corpus / "4.png").unlink()
    loader = make_loader(data, EpochSampler(len(data), 11), Collate(tokenizer, 9))
    (batch,) = loader
    assert batch.replaced == 2 and {path[-5:] for path, _ in batch.bad} == {"3.png", "4.png"}
    assert sorted(batch.indices.tolist()) == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10]

    patient = BadImageCounter(2 / 11, min_seen=1)
    patient.update(batch)
    assert (patient.seen, patient.replaced, len(patient.examples)) == (11, 2, 2)
    for strict in (BadImageCounter(1 / 11, min_seen=11), BadImageCounter(0)):
        with pytest.raises(UserError, match=r"^2 of 11 samples .*[34]\.png \(no such file\)"):
            strict.update(batch)
    late = BadImageCounter(0.1, min_seen=100)
    late.update(batch)
    with pytest.raises(UserError, match="2 of 11"):
        late.check()


def test_a_clean_run_is_never_stopped(tokenizer):
    counter = BadImageCounter(0, min_seen=1)
    counter.check()
    for _ in range(3):
        counter.update(Collate(tokenizer, 9)(samples_of(["w0", "w1"])))
    assert (counter.seen, counter.replaced) == (6, 0)


# --- workers that are lost, or not wanted


class Ends(torch.utils.data.Dataset):
    """Item 3 ends its worker as the system does when memory is short."""

    def __getitem__(self, index):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_worker_is_one_line_that_says_what_to_do():
    loader = make_loader(Ends(), [[0], [1], [2], [3], [4], [5]], list, workers=2)
    with pytest.raises(UserError, match=r"worker .* lost \(DataLoader worker .*data\.workers to fewer, 0 .*--resume$"):
        list(loader)


class Says(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    "text",
    [
        "unable to write to file </torch_12_34_0>: No space left on device (28)",
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: Success (0)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared "
        "memory. Please try to raise your shared memory limit.",
    ],
)
def test_too_little_shared_memory_is_one_line_that_says_what_to_do(text):
    with pytest.raises(UserError, match=r"/dev/shm.*--shm-size=8g.*data\.workers: 0$"):
        list(make_loader(Says(RuntimeError(text)), [[0]], list, workers=1))


def test_other_errors_of_a_worker_stay_what_they_are():
    with pytest.raises(RuntimeError, match="a defect"):
        list(make_loader(Says(RuntimeError("a defect")), [[0]], list))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_more_workers_than_batches_and_none_for_an_empty_list(monkeypatch):
    started = []
    monkeypatch.setattr(
        torch.utils.data.dataloader._MultiProcessingDataLoaderIter,
        "__init__",
        lambda self, loader: started.append(loader.num_workers) or (_ for _ in ()).throw(KeyError),
    )
    assert list(make_image_loader([torch.zeros(1)] * 9, [], 4, workers=3)) == [] and not started
    with pytest.raises(KeyError):
        list(make_image_loader([torch.zeros(1)] * 9, range(5), 4, workers=3))
    assert started == [2]


# --- what travels


def test_batches_of_pixels_travel_as_bytes_and_know_what_is_predicted(corpus, tokenizer):
    data = training_data(corpus)
    batches = {}
    for name, normalization in (("floats", CLIP), ("bytes", None)):
        data.transform = train_transform(8, normalization=normalization)
        collate = Collate(tokenizer, 9, 0.4, seed=3)
        sampler = EpochSampler(len(data), 4, seed=2)
        batches[name] = list(make_loader(data, sampler, collate, workers=1))
    for whole, small in zip(*batches.values(), strict=True):
        assert small.images.dtype == torch.uint8
        moved = normalized(small.to("cpu"), CLIP)
        assert same(moved, whole) and normalized(whole, CLIP) is whole
        places, predicted = moved.predicted_places(), (whole.labels.flatten() >= 0).nonzero()[:, 0]
        assert torch.equal(places, whole.predicted_places()) and torch.equal(places[: len(predicted)], predicted)


def test_a_fixed_length_only_adds_padding(corpus, tokenizer):
    data = training_data(corpus)
    samples = [data[0, index] for index in range(4)]
    plain, fixed = (Collate(tokenizer, 30, 0.4, 3, fixed)(samples) for fixed in (False, True))
    length = plain.ids.shape[1]
    assert length < 30 and fixed.ids.shape == (4, 30)
    for name, padding in (("ids", tokenizer.pad_id), ("mask", 0), ("masked_ids", tokenizer.pad_id), ("labels", -100)):
        padded = getattr(fixed, name)
        assert torch.equal(padded[:, :length], getattr(plain, name)) and bool((padded[:, length:] == padding).all())
