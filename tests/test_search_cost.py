"""What benchmarks/search_cost.py compares with computes the same as hwnas."""

import sys
from pathlib import Path

import pytest
import torch

from hwnas import ArchParameters, assigned
from hwnas.core.relaxation import Softmax
from hwnas.search_spaces.autortnet import AutoRTNet

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import search_cost
import search_cost_gpu
import search_cost_twin

SPACE = AutoRTNet.from_preset("small", cells=(2, 2, 1), height=32, width=32, dropout=0.0)


def made():
    torch.manual_seed(0)
    return SPACE.supernet().train().double()


def test_the_twin_mixes_as_the_supernet_does(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", lambda alpha, tau: (alpha / tau).softmax(-1))
    net, twin = made(), search_cost_twin.Twin(made()).double()
    arch = ArchParameters(net).double()
    generator = torch.Generator().manual_seed(1)
    logits = {
        choice.name: torch.randn(len(choice.options), generator=generator).tolist() for choice in arch.choices
    }
    arch.set_logits(logits)
    with torch.no_grad():
        for name, values in logits.items():
            twin.alphas[name.replace(".", "_")].copy_(torch.tensor(values))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with assigned(net, arch, arch.draw(Softmax(), 1.0)):
        mine = net(x)
    theirs = twin(x, 1.0)
    torch.testing.assert_close(mine, theirs)
    mine.square().mean().backward()
    theirs.square().mean().backward()
    for row, choice in zip(torch.cat([m.grad for m in arch.matrices.values()]), arch.choices, strict=True):
        expected = twin.alphas[choice.name.replace(".", "_")].grad
        torch.testing.assert_close(row[: len(choice.options)], expected)
    assert sum(p.numel() for p in twin.network.parameters()) == sum(p.numel() for p in net.parameters())


def test_the_deepest_network_has_all_cells():
    net = made()
    arch = ArchParameters(net)
    deepest = search_cost_twin.deepest(made(), lambda block: block.options[0])
    draw = arch.one_hot({c.name: len(c.options) - 1 if c.kind == "depth" else 0 for c in arch.choices})
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with assigned(net, arch, draw):
        torch.testing.assert_close(deepest(x), net(x))


def test_ratios_are_of_one_group_each():
    row = {"mean_seconds": 1.0, "median_seconds": 1.0, "step_mib": 10.0}
    sampling = {
        "hard": row,
        "soft": {"mean_seconds": 8.0, "median_seconds": 6.0, "step_mib": 40.0},
        "twin": {"mean_seconds": 9.0, "median_seconds": 12.0, "step_mib": 40.0},
    }
    assert search_cost.ratios({"sampling": sampling}) == {
        "soft / hard, seconds": 8.0,
        "soft / hard, memory of a step": 4.0,
        "soft / plain PyTorch, seconds": pytest.approx(0.5),
    }


def test_a_gpus_page_says_what_a_search_takes_and_what_does_not_fit():
    row = search_cost_gpu.measured("hard", {"height": 32, "width": 32, "batch": 2}, "cpu", steps=2)
    assert row["slowest_ms"] >= row["median_ms"] > 0 and row["peak_gib"] is None
    page = search_cost_gpu.page(
        {
            "height": 360, "width": 480, "batch": 16, "torch": "2", "date": "today",
            "device": {"name": "a GPU"},
            "variants": {
                "hard": {"steps": 9, "mean_ms": 200.0, "median_ms": 1.0, "slowest_ms": 3.0, "peak_gib": 4.0},
                "soft": {"failed": "out of memory"},
            },
        }
    )  # fmt: skip
    # 150 epochs of 22 steps, at 0.2 s each
    assert "| hard | 200.0 | 1.0 | 3.0 | 4.0 | 11.0 |" in page
    assert "| soft | out of memory |" in page
