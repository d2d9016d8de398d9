import pytest
import torch
import torch.nn.functional as F

from pela_vl.data.collate import predicted_places
from pela_vl.models.albef.losses import masked_language_loss


def full_logits_loss(logits, labels, momentum, alpha):
    """As published: over all tokens, the ignored ones left out by label."""
    hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    soft = -(F.log_softmax(logits, -1) * F.softmax(momentum, -1)).sum(-1)[labels != -100].mean()
    return (1 - alpha) * hard + alpha * soft


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_loss_at_masked_tokens_is_the_loss_over_all_tokens(alpha):
    torch.manual_seed(0)
    logits, momentum = torch.randn(3, 6, 20, requires_grad=True), torch.randn(3, 6, 20)
    labels = torch.where(torch.rand(3, 6) < 0.4, torch.randint(20, (3, 6)), -100)
    chosen = labels >= 0
    assert 0 < chosen.sum() < chosen.numel()
    labels[1], labels[0, 4] = -100, -100  # a text without a predicted token
    chosen = labels >= 0
    expected = full_logits_loss(logits, labels, momentum, alpha)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    places = predicted_places(labels)
    assert chosen.sum() < len(places) < labels.numel()  # some that do not count are among them
    for index in (chosen.flatten(), places):
        at = (tensor.flatten(0, 1)[index] for tensor in (logits, labels, momentum))
        loss = masked_language_loss(*at, alpha)
        (grad,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(grad, expected_grad)


def test_the_number_of_places_follows_from_the_shape_alone():
    """Quarters of the tokens, as many as hold those that are predicted; these come first and in order."""
    for predicted in range(11):
        labels = torch.full((2, 5), -100)
        labels.view(-1)[torch.randperm(10)[:predicted]] = 7
        places = predicted_places(labels)
        assert len(places) == {0: 3, 1: 3, 2: 3, 3: 3, 4: 6, 5: 6, 6: 6, 7: 9, 8: 9, 9: 9}.get(predicted, 10)
        assert torch.equal(places[:predicted], (labels.flatten() >= 0).nonzero()[:, 0])
        assert len(places.unique()) == len(places)


def test_without_momentum_logits_only_the_labels_count():
    logits, labels = torch.randn(4, 9), torch.tensor([1, 2, 3, 4])
    torch.testing.assert_close(masked_language_loss(logits, labels, None, 0.4), F.cross_entropy(logits, labels))


def test_no_masked_token_gives_zero_with_a_graph():
    for count in (0, 3):
        logits = torch.randn(count, 9, requires_grad=True)
        loss = masked_language_loss(logits, torch.full((count,), -100), logits.detach(), 0.4)
        loss.backward()
        assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()
