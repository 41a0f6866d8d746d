import pytest
import torch
from torch.nn import functional

from hwnas.errors import InvalidInput
from hwnas.layers import Conv, bilinear


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "to"), [((7, 5), (4, 9)), ((3, 4), (24, 32)), ((1, 6), (5, 6))])
def test_resizing_and_its_gradient_are_those_of_torch(memory_format, size, to):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
    weight = torch.randn(2, 3, *to, dtype=torch.float64, generator=generator)
    gradients = []
    for resize in (bilinear, lambda x, to: functional.interpolate(x, to, mode="bilinear")):
        leaf = x.clone(memory_format=memory_format).requires_grad_()
        resized = resize(leaf, to)
        assert resized.equal(functional.interpolate(x, to, mode="bilinear"))
        (resized * weight.contiguous(memory_format=memory_format)).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def test_half_precision_gradients_stay_half():
    x = torch.randn(1, 2, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    bilinear(x, (6, 8)).sum().backward()
    # Each pixel is spread over four: what arrives at it are four ones.
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad.sum(), torch.tensor(96.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("kernel", [-2, -1, 0, 2, 4])
def test_an_even_kernel_is_refused(kernel):
    with pytest.raises(
        InvalidInput, match=rf"an odd kernel, got kernel={kernel}: .*the size of the map\. Use"
    ):
        Conv(3, 4, kernel=kernel)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_an_odd_kernel_keeps_the_size_or_halves_it(kernel):
    x = torch.zeros(1, 3, 7, 10)
    assert Conv(3, 4, kernel=kernel, dilation=2)(x).shape == (1, 4, 7, 10)
    assert Conv(3, 4, kernel=kernel, stride=2)(x).shape == (1, 4, 4, 5)
