import signal

import pytest
import torch

from hwnas import ArchParameters, SearchConfig, SearchData, assigned, search
from hwnas.core import search as search_module
from hwnas.core.graphed import GraphedTask, refuse_graphs
from hwnas.core.prune import ThresholdPruner
from hwnas.core.relaxation import GumbelSoftmax
from hwnas.core.runlog import read_log
from hwnas.errors import Interrupted, InvalidInput
from hwnas.search_spaces.autortnet import AutoRTNet

from .cuda_graphs import cuda_graphs  # noqa: F401  # a fixture
from .resumable import signal_at

SPACE = AutoRTNet(
    num_classes=3, height=32, width=64, cells=(1, 2, 2), init_channels=2, stem_channels=(2, 2),
    aggregation_width=4, head_width=4, head_dilations=(2,), dropout=0.0,
)  # fmt: skip


def batches(count, size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, 32, 64, generator=generator),
            torch.randint(0, 3, (size, 32, 64), generator=generator),
        )
        for _ in range(count)
    ]


def twins():
    """Two equal supernets with their parameters."""
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        net = SPACE.supernet().train()
        nets.append((net, ArchParameters(net)))
    return nets


def soft(arch, seed):
    return arch.draw(GumbelSoftmax(hard=False), 1.0, torch.Generator().manual_seed(seed))


def test_replays_give_what_eager_steps_give(cuda_graphs):  # noqa: F811
    (net, arch), (twin, twin_arch) = twins()
    graphed = GraphedTask(SPACE, net, arch, "fp32")
    steps = [
        torch.optim.SGD([*n.parameters(), *a.parameters()], lr=0.1)
        for n, a in ((net, arch), (twin, twin_arch))
    ]
    for number, (inputs, targets) in enumerate(batches(4)):
        for optimiser in steps:
            optimiser.zero_grad()
        loss, outputs = graphed(inputs, targets, soft(arch, number).weights)
        draw = soft(twin_arch, number)
        with assigned(twin, twin_arch, draw):
            expected = twin(inputs)
            true = SPACE.loss(expected, targets)
        assert loss.item() == pytest.approx(true.item(), rel=1e-5)
        assert torch.allclose(outputs, expected, atol=1e-4)
        (2 * loss).backward()
        (2 * true).backward()
        for (name, one), (_, other) in zip(
            [*net.named_parameters(), *arch.named_parameters()],
            [*twin.named_parameters(), *twin_arch.named_parameters()],
            strict=True,
        ):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None:
                assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), name
        for optimiser in steps:
            optimiser.step()
    for (name, one), (_, other) in zip(net.named_buffers(), twin.named_buffers(), strict=True):
        # Batch norms have seen each batch once: capturing left no trace.
        assert torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-5), name
    assert cuda_graphs.captured == 2  # forward and backward, once


def test_another_graph_is_captured_where_it_would_be_another(cuda_graphs):  # noqa: F811
    (net, arch), _ = twins()
    graphed = GraphedTask(SPACE, net, arch, "fp32")

    def captured(inputs, targets, weights):
        before = cuda_graphs.captured
        graphed(inputs, targets, weights)
        return (cuda_graphs.captured - before) // 2

    (pair, other), (single, *_) = batches(2), batches(1, size=1)
    assert captured(*pair, soft(arch, 0).weights) == 1
    assert captured(*other, soft(arch, 1).weights) == 0
    assert captured(*other, soft(arch, 1).weights.detach()) == 0  # before any choice learns
    assert captured(*single, soft(arch, 0).weights) == 1
    arch.alive[-1, 1] = False
    assert captured(*single, soft(arch, 0).weights) == 1
    assert captured(*single, soft(arch, 1).weights) == 0


def test_capturing_leaves_the_random_state_as_it_was(cuda_graphs):  # noqa: F811
    space = AutoRTNet(**SPACE.model_dump() | {"dropout": 0.5})
    net = space.supernet().train()
    arch = ArchParameters(net)
    graphed = GraphedTask(space, net, arch, "fp32")
    (first, other), weights = batches(2), soft(arch, 0).weights

    def state_after(batch):
        torch.manual_seed(3)
        graphed(*batch, weights)
        return torch.get_rng_state()

    captured, replayed = state_after(first), state_after(other)
    assert cuda_graphs.captured == 2
    assert torch.equal(captured, replayed)  # both have drawn one step's masks
    torch.manual_seed(3)
    assert not torch.equal(captured, torch.get_rng_state())


def test_what_waits_for_the_device_cannot_be_captured(cuda_graphs):  # noqa: F811
    class Waits(AutoRTNet):
        def loss(self, outputs, targets):
            return super().loss(outputs, targets) * float(targets.sum() > 0)

    (net, arch), _ = twins()
    (inputs, targets), *_ = batches(1)
    with pytest.raises(InvalidInput, match=r"not permitted when stream is capturing\n.*cuda_graph=false"):
        GraphedTask(Waits(**SPACE.model_dump()), net, arch, "fp32")(inputs, targets, soft(arch, 0).weights)


@pytest.mark.parametrize("levels", [1, 2])
def test_a_search_with_graphs_is_the_search_without(levels, cuda_graphs, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(search_module, "refuse_graphs", lambda **given: None)
    data = SearchData(batches(3), arch=batches(2, seed=1) if levels == 2 else None)
    found = {}
    for use in (False, True):
        config = SearchConfig(
            epochs=3, device="cpu", cuda_graph=use, relaxation=GumbelSoftmax(hard=False), arch_lr=0.3,
            arch_from_epoch=1, explore=0.3, pruner=ThresholdPruner(share=0.7, from_epoch=1),
        )  # fmt: skip
        out = tmp_path / str(use)
        result = search(SPACE, None, data, config, out=out)
        losses = [event["loss"] for event in read_log(out / "search.log.jsonl") if event["event"] == "step"]
        found[use] = (result.probabilities, losses)
        died = [event["pruned"] for event in read_log(out / "search.log.jsonl") if event["event"] == "epoch"]
        assert any(died)
    assert found[True][1] == pytest.approx(found[False][1], rel=1e-3)
    for name, probabilities in found[False][0].items():
        assert found[True][0][name] == pytest.approx(probabilities, abs=5e-3)
    assert cuda_graphs.captured >= 4  # options died


def test_a_search_with_graphs_goes_on_as_if_it_had_not_been_stopped(cuda_graphs, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(search_module, "refuse_graphs", lambda **given: None)
    space = AutoRTNet(**SPACE.model_dump() | {"dropout": 0.5})

    def run(out, **options):
        config = SearchConfig(
            epochs=2, device="cpu", cuda_graph=True, relaxation=GumbelSoftmax(hard=False), arch_lr=0.3,
            checkpoint_every_steps=1,
        )  # fmt: skip
        return search(space, None, SearchData(batches(3)), config, out=tmp_path / out, **options)

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("stopped", on_progress=signal_at(4, signal.SIGTERM))
    captured = cuda_graphs.captured
    resumed = run("stopped", resume=True)
    assert cuda_graphs.captured == captured + 2  # anew
    assert resumed.probabilities == whole.probabilities
    for name, value in whole.supernet.state_dict().items():
        assert torch.equal(value, resumed.supernet.state_dict()[name]), name


def test_what_cannot_be_captured_is_refused():
    good = {"soft": True, "recompute": False, "device": torch.device("cuda"), "process_count": 1}
    refuse_graphs(**good)
    for change, said in {
        ("soft", False): "hard sampling computes another path",
        ("recompute", True): "activations are computed again",
        ("device", torch.device("cpu")): "it trains on cpu",
        ("process_count", 2): "2 processes wait",
    }.items():
        with pytest.raises(InvalidInput, match=said):
            refuse_graphs(**good | dict([change]))
    with pytest.raises(InvalidInput, match=r"it trains on cpu, .*; hard sampling"):
        search(SPACE, None, SearchData(batches(1)), SearchConfig(device="cpu", cuda_graph=True))


def test_without_graphs_a_search_is_what_it_was_before_there_were_any():
    identities = [
        search_module.search_identity(SPACE, None, SearchData([]), SearchConfig(cuda_graph=use))["config"]
        for use in (False, True)
    ]
    assert "cuda_graph" not in identities[0]
    assert identities[1]["cuda_graph"] is True
