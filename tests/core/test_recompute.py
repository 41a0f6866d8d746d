import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwnas import ArchParameters, Choice, ChoiceBlock, Conv, PoolLinear, assigned
from hwnas.core.choice import blocks, recompute
from hwnas.core.relaxation import GumbelSoftmax

from .nets import SPACES, ChoiceInChoice


class Noisy(nn.Module):
    """Dropout in an option: the repetition must draw the same mask."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Conv(4, 4), nn.Dropout(0.5))

    def forward(self, x):
        return self.inner(x)


def noisy_net():
    choice = Choice(name="a", options=("noisy", "plain"))
    block = ChoiceBlock(choice, {"noisy": Noisy(), "plain": Conv(4, 4, kernel=1)})
    return nn.Sequential(Conv(3, 4), block, PoolLinear(4, 2))


MAKERS = {space.name: space.supernet for space in SPACES} | {"noisy": noisy_net}


def step(make, hard, recomputing):
    """Loss, gradients and buffers after a step, and the operations it took."""
    torch.manual_seed(0)
    net = make().train()
    if recomputing:
        recompute(net)
    arch = ArchParameters(net)
    draw = arch.draw(GumbelSoftmax(hard=hard), 1.0, torch.Generator().manual_seed(3))
    x = torch.randn(4, 3, 6, 5)
    with FlopCounterMode(display=False) as counter:
        with assigned(net, arch, draw):
            loss = net(x).square().mean()
        loss.backward()
    gradients = {name: parameter.grad for part in (net, arch) for name, parameter in part.named_parameters()}
    return loss.detach(), gradients, dict(net.named_buffers()), counter.get_total_flops()


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_and_statistics_are_the_same(name, hard):
    kept, again = (step(MAKERS[name], hard, recomputing) for recomputing in (False, True))
    assert torch.equal(kept[0], again[0])
    for part in (1, 2):
        assert kept[part].keys() == again[part].keys()
        for key, value in kept[part].items():
            if value is None:
                assert again[part][key] is None
            else:
                torch.testing.assert_close(again[part][key], value, rtol=0, atol=0)
    assert again[3] > kept[3]  # it did compute again


def test_blocks_that_hold_blocks_keep_what_they_computed():
    net = ChoiceInChoice().supernet()
    recompute(net)
    named = {block.choice.name: block for block in blocks(net) if isinstance(block, ChoiceBlock)}
    assert named["inner"].recomputes
    assert not next(block for block in blocks(net) if isinstance(block, ChoiceBlock)).recomputes
