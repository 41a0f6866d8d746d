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
