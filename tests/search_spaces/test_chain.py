import pytest
import torch
from pydantic import ValidationError

from hwnas import Conv
from hwnas.search_spaces.chain import Accuracy, Chain
from hwnas.testing import check_space


@pytest.mark.parametrize(
    "space",
    [
        Chain(size=9, channels=4),
        Chain(size=4, channels=3, stages=1, depth=1, kernels=(3,), num_classes=2),
        Chain(size=16, channels=4, stages=3, depth=2, kernels=(1, 7)),
    ],
    ids=["default", "smallest", "deep"],
)
def test_conformance(space):
    check_space(space)


def test_the_network_that_a_genotype_names():
    space = Chain(size=16, channels=4, num_classes=3)
    genotype = space.genotype({"s1.kernel": 2, "s1.depth": 1, "s2.kernel": 0, "s2.depth": 0})
    assert genotype.choices == {
        "s1.depth": "2",
        "s1.kernel": "conv_5x5",
        "s2.depth": "1",
        "s2.kernel": "conv_1x1",
    }
    network = space.build(genotype)
    kernels = [module.conv.kernel_size[0] for module in network.modules() if isinstance(module, Conv)]
    # stem, first stage's stride, two of 5, second stage's stride, one of 1
    assert kernels == [3, 3, 5, 5, 3, 1]
    assert network.eval()(torch.randn(2, 3, 16, 16)).shape == (2, 3)


def test_latency_is_of_the_whole_network():
    """Stem, strides and head are charged, not only what is searched."""
    paths = {use.path for use in Chain().record().ops if not use.condition}
    # Stem, two strides and the head always run; the layers of a stage have the condition of its kernel.
    assert paths == {"0", "1", "3", "5"}


@pytest.mark.parametrize("fields", [{"stages": 0}, {"depth": 0}, {"num_classes": 1}, {"size": 1}])
def test_fields_are_checked(fields):
    with pytest.raises(ValidationError, match="greater than or equal"):
        Chain(**fields)


@pytest.mark.parametrize("kernels", [(), (2,), (3, 3), (0,), (-3,)])
def test_kernels_are_odd_and_differ(kernels):
    with pytest.raises(ValidationError, match="kernels"):
        Chain(kernels=kernels)


def test_accuracy():
    metric = Accuracy()
    assert metric.compute() == {"accuracy": 0.0}
    metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert metric.compute() == {"accuracy": 75.0}
    metric.reset()
    assert metric.compute() == {"accuracy": 0.0}
