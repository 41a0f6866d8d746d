import pytest
import torch
from torch import nn

from hwnas.core.guidance import AuxiliaryHeads, distillation_loss
from hwnas.errors import InvalidInput


def test_distillation_by_hand():
    """p = (3/4, 1/4), q = (1/2, 1/2): KL(p, q) = 3/4 ln(3/2) + 1/4 ln(1/2), at every position."""
    taught = torch.tensor([3.0, 1.0]).log().view(1, 2, 1, 1).expand(2, 2, 3, 3)
    ours = torch.zeros(2, 2, 3, 3)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(distillation_loss(ours, taught, 1.0), expected)
    # Logits twice as large at temperature 2 are the same distributions; the divergence counts 2² times.
    torch.testing.assert_close(distillation_loss(2 * ours, 2 * taught, 2.0), 4 * expected)
    with pytest.raises(InvalidInput, match=r"teacher gives \[2, 2, 3, 3\], the network \[2, 2\]"):
        distillation_loss(torch.zeros(2, 2), taught, 1.0)


def test_answers_of_fewer_pixels_count_where_they_are_known():
    """A network that is at (3/4, 1/4) on average in the left half; what it says on the right is not asked."""
    taught = torch.tensor([1.0, 1.0]).log().view(1, 2, 1, 1).expand(1, 2, 1, 2)
    log_odds = torch.tensor(3.0).log()
    ours = torch.zeros(1, 2, 2, 4)
    ours[0, 0] = torch.tensor([[0.5, 1.5, 9.0, -9.0], [2.0, 0.0, 9.0, 9.0]]) * log_odds
    is_known = torch.tensor([[[True, False]]])
    # q = (1/2, 1/2), p = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2
    expected = 0.5 * torch.tensor(2 / 3).log() + 0.5 * torch.tensor(2.0).log()
    torch.testing.assert_close(distillation_loss(ours, taught, 1.0, is_known), expected)
    nothing = distillation_loss(ours.requires_grad_(), taught, 1.0, torch.zeros_like(is_known))
    nothing.backward()
    assert nothing == 0 and torch.equal(ours.grad, torch.zeros_like(ours))


def test_finer_or_misshapen_maps_are_refused():
    ours, is_known = torch.zeros(2, 3, 4, 4), torch.ones(2, 8, 8, dtype=torch.bool)
    with pytest.raises(InvalidInput, match=r"the teacher gives \[2, 3, 8, 8\], the network \[2, 3, 4, 4\]"):
        distillation_loss(ours, torch.zeros(2, 3, 8, 8), 1.0, is_known)
    with pytest.raises(InvalidInput, match=r"is_known must be \[2, 2, 2\], .* got \[1, 2, 2\]"):
        distillation_loss(ours, torch.zeros(2, 3, 2, 2), 1.0, torch.ones(1, 2, 2, dtype=torch.bool))


def test_heads_read_training_passes_and_leave_no_hook():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    head = nn.Linear(3, 5)
    heads = AuxiliaryHeads(net, {"0": head})
    x = torch.randn(4, 2)
    with heads.reading():
        (output,) = heads(net(x))
        torch.testing.assert_close(output, head(net[0](x)))
        output.sum().backward()
        assert net[0].weight.grad is not None
    assert not net[0]._forward_hooks
    assert [name for name, _ in heads.named_parameters()] == ["heads.0.weight", "heads.0.bias"]
    with pytest.raises(InvalidInput, match="reads '7', and the network has no such module"):
        AuxiliaryHeads(net, {"7": head})


def test_heads_of_smaller_maps_lie_where_strides_took_them_from():
    """A row that says where it was taken from still does in a head's output: 3 of 5 rows, by a stride 2."""
    net = nn.Sequential(nn.AvgPool2d((2, 1), ceil_mode=True), nn.Identity())
    heads = AuxiliaryHeads(net, {"0": nn.Identity()})
    rows = torch.arange(5.0).view(1, 1, 5, 1)
    with heads.reading():
        net(rows)
        (output,) = heads(rows)
    # Means of rows 0 and 1, and of 2 and 3, stand between them; the last has row 4 alone.
    assert output.flatten().tolist() == pytest.approx([0.5, 1.0, 2.0, 2.875, 3.625])
