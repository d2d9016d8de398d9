import pytest
import torch
import torch.nn.functional as F

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
    expected = full_logits_loss(logits, labels, momentum, alpha)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    loss = masked_language_loss(logits[chosen], labels[chosen], momentum[chosen], alpha)
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_without_momentum_logits_only_the_labels_count():
    logits, labels = torch.randn(4, 9), torch.tensor([1, 2, 3, 4])
    torch.testing.assert_close(masked_language_loss(logits, labels, None, 0.4), F.cross_entropy(logits, labels))


def test_no_masked_token_gives_zero_with_a_graph():
    logits = torch.randn(0, 9, requires_grad=True)
    loss = masked_language_loss(logits, torch.zeros(0, dtype=torch.int64), logits.detach(), 0.4)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None
