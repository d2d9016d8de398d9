import pytest
import torch
from tiny_albef import randomise, tiny_albef
from torch import nn

from pela_vl.models.albef.queue import FeatureQueue
from pela_vl.models.ema import EmaModel

WITHOUT = ("itm_head", "temp")


@pytest.mark.parametrize("low_rank", [False, True])
def test_update_mixes_by_name(low_rank):
    online = tiny_albef(low_rank=low_rank)
    ema = EmaModel(online, WITHOUT)
    randomise(ema.model)
    before = {name: p.clone() for name, p in ema.model.named_parameters()}
    online_before = {name: p.clone() for name, p in online.named_parameters()}
    ema.update(online, 0.9)
    own = dict(ema.model.named_parameters())
    assert own.keys() == {name for name in online_before if not name.startswith(WITHOUT)}
    for name, parameter in own.items():
        torch.testing.assert_close(parameter, 0.9 * before[name] + 0.1 * online_before[name])
    for name, parameter in online.named_parameters():
        assert torch.equal(parameter, online_before[name])


def test_pairing_is_by_name_and_not_by_order():
    online = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    ema = EmaModel(online)
    turned = nn.ModuleDict({"b": online["b"], "a": online["a"]})
    ema.update(turned, 0.0)
    assert torch.equal(ema.model["a"].weight, online["a"].weight)
    assert torch.equal(ema.model["b"].weight, online["b"].weight)
    with pytest.raises(KeyError, match="a.weight"):
        ema.update(nn.ModuleDict({"b": nn.Linear(2, 2)}), 0.5)


def test_an_ema_model_is_a_copy_that_is_never_trained():
    online = tiny_albef(dropout=0.1).train()
    ema = EmaModel(online, WITHOUT)
    assert not any(p.requires_grad for p in ema.parameters())
    storage = {p.data_ptr() for p in online.parameters()}
    assert not any(p.data_ptr() in storage for p in ema.parameters())
    nn.ModuleDict({"ema": ema}).train()
    assert not any(module.training for module in ema.modules())
    assert online.training and all(p.requires_grad for p in online.parameters())
    assert online.itm_head is not None and ema.model.itm_head is None


@pytest.mark.parametrize("size", [0, 1, 4, 7])
def test_queue_holds_the_last_features_pushed(size):
    queue = FeatureQueue(3, size)
    first = queue.image.clone(), queue.text.clone()
    # the model of a queue: a plain list, oldest first
    history = [(first[0][:, i], first[1][:, i], -100) for i in range(size)]
    number = 0
    for pushed in (1, 3, 2, 9, 4, 5, 7):
        image, text = torch.randn(pushed, 3), torch.randn(pushed, 3)
        ids = torch.arange(number, number + pushed)
        number += pushed
        queue.push(image, text, ids)
        history += [(image[i], text[i], int(ids[i])) for i in range(pushed)]
        kept = history[len(history) - size :]
        assert sorted(queue.ids.tolist()) == sorted(entry[2] for entry in kept)
        for image_feature, text_feature, name in kept:
            if name >= 0:
                column = queue.ids.tolist().index(name)
                assert torch.equal(queue.image[:, column], image_feature)
                assert torch.equal(queue.text[:, column], text_feature)
        for column, name in enumerate(queue.ids.tolist()):
            if name == -100:
                assert torch.equal(queue.image[:, column], first[0][:, column])
        assert 0 <= queue.pointer.item() < max(size, 1)


def test_queue_starts_with_unit_features_and_ids_of_no_image():
    queue = FeatureQueue(5, 6)
    torch.testing.assert_close(queue.image.norm(dim=0), torch.ones(6))
    torch.testing.assert_close(queue.text.norm(dim=0), torch.ones(6))
    assert queue.ids.tolist() == [-100] * 6
    assert set(queue.state_dict()) == {"image", "text", "ids", "pointer"}
