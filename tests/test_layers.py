import pytest
import torch
from torch.nn import functional

from hwnas.errors import InvalidInput
from hwnas.layers import Conv, Resize, bilinear, bilinear_onto


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


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("n", range(9, 41))
def test_each_position_lies_over_those_that_a_stride_made_it_of(stride, n):
    """A map that says where it was taken from says so still when resized, at sizes too that do not divide."""
    middles = (torch.arange(-(-n // stride), dtype=torch.float64) + 0.5) * stride - 0.5
    x = middles.view(1, 1, -1, 1)
    found = bilinear_onto(x, (n, 1)).flatten()
    between = (torch.arange(n) >= middles[0]) & (torch.arange(n) <= middles[-1])
    torch.testing.assert_close(found[between], torch.arange(n, dtype=torch.float64)[between])
    assert len(found) == n
    # Above and below the outermost ones they are repeated.
    assert bool((found[~between & (torch.arange(n) < n / 2)] == middles[0]).all())


def test_both_axes_are_resized_by_their_own_strides():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    # 3 → 5 by 2 and 4 → 13 by 4; both are cut.
    expected = functional.interpolate(x, size=(6, 16), mode="bilinear")[..., :5, :13]
    resized = Resize()(x, torch.zeros(1, 9, 5, 13))
    assert resized.equal(expected)
    assert not resized.equal(functional.interpolate(x, size=(5, 13), mode="bilinear"))


@pytest.mark.parametrize(("size", "to"), [((5, 6), (11, 13)), ((9, 12), (4, 5)), ((6, 8), (48, 32))])
def test_sizes_that_no_stride_relates_or_that_it_divides_are_resized_by_their_ratio(size, to):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert bilinear_onto(x, to).equal(functional.interpolate(x, size=to, mode="bilinear"))


def test_bins_of_a_size_of_their_own_may_pass_for_strided_ones():
    """The limit that the docstring tells: 6 of 45 is what a stride of 8 leaves, too."""
    bins = torch.arange(6.0).view(1, 1, 6, 1)
    by_stride = functional.interpolate(bins, size=(48, 1), mode="bilinear")[:, :, :45]
    assert bilinear_onto(bins, (45, 1)).equal(by_stride)


def test_the_gradient_of_what_was_cut_is_torchs():
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bilinear_onto(x, (5, 13)), x)


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
