"""A segmentation network that is made in a blink, with statistics as after a training."""

import torch
from torch import nn

from hwnas import Conv, Resize
from hwnas.core.derive import make_batchnorm_affine
from hwnas.segmentation import Labelling

SHAPE = (3, 16, 24)

LABELLING = Labelling(
    classes=("road", "sky", "car", "person"),
    palette=((10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200)),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.5),
)


class Net(nn.Module):
    """Half-resolution features, four classes, resized back."""

    def __init__(self):
        super().__init__()
        self.stem, self.features = Conv(3, 8, stride=2), Conv(8, 8)
        self.classify, self.resize = nn.Conv2d(8, 4, 1), Resize()

    def forward(self, x):
        return self.resize(self.classify(self.features(self.stem(x))), x)


def trained(net=None, seed=0):
    """``net`` in eval mode, its norms with statistics and affine values that no initialisation has."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = net or Net()
        make_batchnorm_affine(net)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 2)
                module.bias.data.normal_()
    return net.eval()


def images(count, seed=1):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
