import pytest
import torch

from hwnas.core.mixing import straight_through, weighted_sum

SHAPES = {"map": (2, 3, 4, 5), "vector": (7,), "scalar": ()}


def inputs(shape, layout, dtype, count=3):
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]
    if layout == "channels_last":
        outputs = [output.contiguous(memory_format=torch.channels_last) for output in outputs]
    if layout == "strided":
        outputs = [torch.stack([output, output], dim=-1)[..., 0] for output in outputs]
    weights = torch.rand(count, generator=generator)
    return [o.requires_grad_() for o in outputs], [w.requires_grad_() for w in weights.unbind()]


def plain(outputs, weights):
    return sum(output * weight for output, weight in zip(outputs, weights, strict=True))


def gradients(function, outputs, weights):
    total = function(outputs, weights)
    seed = torch.randn(total.shape, generator=torch.Generator().manual_seed(1)).to(total.dtype)
    return total, torch.autograd.grad(total, [*outputs, *weights], seed, allow_unused=True)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ("map", "plain"),
        ("map", "channels_last"),
        ("map", "strided"),
        ("vector", "plain"),
        ("scalar", "plain"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_weighted_sum_is_what_it_says(shape, layout, dtype):
    outputs, weights = inputs(SHAPES[shape], layout, dtype)
    mine, theirs = (gradients(function, outputs, weights) for function in (weighted_sum, plain))
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(mine[0], theirs[0], **close)
    for got, expected in zip(mine[1], theirs[1], strict=True):
        torch.testing.assert_close(got, expected, **close)


def test_types_that_differ_are_promoted():
    outputs, weights = inputs((4,), "plain", torch.float32)
    outputs[1] = outputs[1].detach().bfloat16().requires_grad_()
    assert weighted_sum(outputs, weights).dtype == torch.float32
    torch.testing.assert_close(weighted_sum(outputs, weights), plain(outputs, weights))


def test_gradients_that_nobody_wants_are_not_computed():
    outputs, weights = inputs((4,), "plain", torch.float32)
    fixed = [weight.detach() for weight in weights]
    total = weighted_sum([outputs[0].detach(), *outputs[1:]], fixed)
    found = torch.autograd.grad(total.sum(), outputs[1:])
    assert [gradient[0].item() for gradient in found] == [weight.item() for weight in fixed[1:]]


@pytest.mark.parametrize("layout", ["plain", "channels_last"])
def test_straight_through_is_times_one(layout):
    (output,), _ = inputs(SHAPES["map"], layout, torch.float32, count=1)
    one = torch.ones((), requires_grad=True)
    result = straight_through(output, one)
    assert torch.equal(result, output)
    seed = torch.randn_like(result)
    mine = torch.autograd.grad(result, [output, one], seed, retain_graph=True)
    theirs = torch.autograd.grad(output * one, [output, one], seed)
    for got, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, expected)
    result.relu_()  # a reader may work in place
    torch.autograd.grad(result.sum(), [output, one])
