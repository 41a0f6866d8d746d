import json
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from hwnas import Accuracy, Conv, FitConfig, PoolLinear, evaluate, fit
from hwnas.core.evaluation import evaluate_with
from hwnas.core.fit import _poly
from hwnas.core.guidance import SoftTargets
from hwnas.core.runlog import read_log
from hwnas.core.training import GuardedStep
from hwnas.core.weights import load_weights
from hwnas.errors import CheckpointError, Interrupted, InvalidInput, NonFiniteLoss
from hwnas.processes import Processes
from hwnas.segmentation import training_loader

from .resumable import SPACE, loader, signal_at

LOSS = nn.functional.cross_entropy


def network(seed=0):
    torch.manual_seed(seed)
    return SPACE.build(SPACE.genotype({"s1.depth": 1, "s1.kernel": 1, "s2.depth": 0, "s2.kernel": 1}))


def config(**values):
    return FitConfig(**{"device": "cpu", "epochs": 3, "lr": 0.05, **values})


def separable(n=8):
    """Four classes that differ in brightness and colour."""
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0], [-2.0, -2.0, -2.0]])[:, :, None, None]
    targets = torch.arange(4).repeat(2)
    return [(means[targets] + 0.3 * torch.randn(8, 3, 8, 8, generator=generator), targets) for _ in range(n)]


def test_any_size_that_the_network_takes_will_do():
    def sized(*size):
        return [(nn.functional.interpolate(x, size=size), y) for x, y in separable(2)]

    small, other = sized(*SPACE.input_shape()[1:]), sized(13, 9)
    for train, val in ((other, other), (other, small), (small, other)):
        net = network()
        found = fit(net, train, loss=LOSS, config=config(epochs=1), val=val, metric=Accuracy())
        assert found == evaluate(net, val, Accuracy(), device="cpu")


def test_it_learns_and_says_how_well(tmp_path):
    net = network()
    seen = []
    found = fit(
        net,
        separable(),
        loss=LOSS,
        config=config(epochs=4, validate_every=3),
        val=separable(2),
        metric=Accuracy(),
        out=tmp_path,
        on_progress=seen.append,
    )
    assert found["accuracy"] > 90.0
    assert not net.training
    assert evaluate(net, separable(2), Accuracy(), device="cpu") == found
    epochs = [event for event in read_log(tmp_path / "fit.log.jsonl") if event["event"] == "epoch"]
    assert ["val" in event for event in epochs] == [False, False, True, True]
    assert epochs[0]["loss"] > epochs[-1]["loss"]
    assert len(seen) == 4 * 9
    again = network(1)
    load_weights(again, tmp_path / "weights.pt")
    assert evaluate(again, separable(2), Accuracy(), device="cpu") == found


@pytest.mark.parametrize("every_steps", [0, 1, 3])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, every_steps):
    whole = network()
    fit(whole, loader(), loss=LOSS, config=config(), out=tmp_path / "whole")
    settings = config(checkpoint_every_steps=every_steps)
    with pytest.raises(Interrupted, match="after 6 steps"):
        fit(
            network(),
            loader(),
            loss=LOSS,
            config=settings,
            out=tmp_path / "stopped",
            on_progress=signal_at(5, signal.SIGTERM),
        )
    assert not (tmp_path / "stopped/weights.pt").exists()
    resumed = network(7)
    fit(resumed, loader(), loss=LOSS, config=settings, out=tmp_path / "stopped", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_other_data_are_refused(tmp_path):
    def run(**options):
        return fit(network(), separable(1), loss=LOSS, config=config(epochs=1), out=tmp_path, **options)

    run(description={"images": 8})
    with pytest.raises(CheckpointError, match=r"data\.images: checkpoint 8, asked 16"):
        run(description={"images": 16}, resume=True)
    run(resume=True)


def test_another_network_is_refused(tmp_path):
    fit(network(), separable(1), loss=LOSS, config=config(epochs=1), out=tmp_path)
    other = SPACE.build(SPACE.genotype({"s1.depth": 0, "s1.kernel": 0, "s2.depth": 0, "s2.kernel": 1}))
    with pytest.raises(CheckpointError, match=r"belongs to another run:\n  network: checkpoint"):
        fit(other, separable(1), loss=LOSS, config=config(epochs=1), out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="holds the weights of another network"):
        load_weights(other, tmp_path / "weights.pt")


def test_the_learning_rate_warms_up_and_follows_poly():
    settings = FitConfig(epochs=3, warmup_epochs=1, lr=0.1, power=2.0)
    rates = [_poly(settings, step, 2) for step in range(6)]
    # Up in two steps; then 0.1 · (1 − done)², done = 0, 1/4, 1/2, 3/4 of the four that remain.
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.05625, 0.025, 0.00625])


def test_validation_needs_a_metric():
    with pytest.raises(InvalidInput, match="validation data but no metric"):
        fit(network(), separable(1), loss=LOSS, val=separable(1))


@pytest.mark.parametrize("train", [[], iter([])])
def test_no_batches_are_refused(train):
    with pytest.raises(InvalidInput, match="no training batches"):
        fit(network(), train, loss=LOSS, config=config())


def test_evaluation_restores_the_training_flag_and_needs_no_gradient():
    net = network().train()
    first = evaluate(net, separable(1), Accuracy(), device="cpu")
    assert net.training
    assert evaluate(net, separable(1), Accuracy(), device="cpu") == first


def test_data_to_evaluate_on_that_yield_nothing_are_refused():
    with pytest.raises(InvalidInput, match="to evaluate on yield no batches"):
        evaluate(network(), [], Accuracy(), device="cpu")


def test_validation_data_that_are_divided_already_are_refused(monkeypatch):
    data = TensorDataset(torch.zeros(8, 3, 8, 8), torch.zeros(8, dtype=torch.long))
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    monkeypatch.setattr("hwnas.core.evaluation.processes", lambda: Processes(rank=0, size=2))
    for divided in (DataLoader(data, sampler=sampler), training_loader(data, 4)):
        with pytest.raises(InvalidInput, match=r"divided among .*pass a loader of all of them"):
            evaluate_with(network(), divided, Accuracy(), device=torch.device("cpu"), shared=True)


def test_an_epoch_in_which_nothing_is_finite_ends_the_training():
    bad = [(torch.full((4, 3, 8, 8), float("nan")), torch.tensor([0, 1, 2, 3]))] * 3
    with pytest.raises(NonFiniteLoss, match=r"in 3 steps in a row, all of an epoch.*NaN among the inputs"):
        fit(network(), bad, loss=LOSS, config=config(epochs=2))
    # One batch of three is borne.
    fit(network(), [*bad[:1], *separable(2)], loss=LOSS, config=config(epochs=1))


def test_a_seed_decides_what_numpy_and_python_draw_too():
    class Drawn:
        def __len__(self):
            return 2

        def __iter__(self):
            for _ in range(2):
                noise = np.random.standard_normal((4, 3, 8, 8)) + random.random()  # noqa: NPY002 - the global state
                yield torch.from_numpy(noise).float(), torch.tensor([0, 1, 2, 3])

    trained = []
    for _ in range(2):
        net = network()
        fit(net, Drawn(), loss=LOSS, config=config(epochs=1))
        trained.append(net.state_dict())
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


def poisoned(net):
    x = torch.randn(4, 3, 8, 8)
    x[0, 0, 0, 0] = float("nan")
    return LOSS(net(x), torch.tensor([0, 1, 2, 3]))


def test_a_step_that_is_not_finite_moves_nothing_and_heals_the_statistics():
    net = network().train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step = GuardedStep(net, clip=1.0)
    before = {name: value.clone() for name, value in net.named_parameters()}
    assert not step(poisoned(net), optimiser)
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())
    assert all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())
    x, targets = separable(1)[0]
    assert step(LOSS(net(x), targets), optimiser)
    assert (step.skipped, step.skipped_in_a_row) == (1, 0)


def test_a_gradient_that_is_not_finite_outside_of_the_network_counts_too():
    net = nn.Linear(1, 1)
    alpha = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([alpha, *net.parameters()], lr=0.1)
    # sqrt has an infinite slope at 0 while the value is finite.
    assert not GuardedStep(net, clip=None)(net(torch.ones(1)).sum() + alpha.sqrt().sum(), optimiser)
    assert alpha.item() == 0.0


def test_patience_ends():
    net = network().train()
    step = GuardedStep(net, clip=None, patience=2)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        step(poisoned(net), optimiser)
    with pytest.raises(NonFiniteLoss, match=r"3 steps in a row \(last loss: nan\)"):
        step(poisoned(net), optimiser)


def test_gradients_are_clipped_to_the_norm():
    net = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(net.weight)
    # The gradient is (30, 40), its norm 50; clipped to 5 it is (3, 4).
    GuardedStep(net, clip=5.0)(
        net(torch.tensor([30.0, 40.0])).sum(), torch.optim.SGD(net.parameters(), lr=1.0)
    )
    torch.testing.assert_close(net.weight.detach(), torch.tensor([[-3.0, -4.0]]), atol=1e-4, rtol=0)


def test_the_moving_average_is_what_is_kept_and_scored(tmp_path):
    """Three steps by hand: decays (1 + t) / (10 + t) for t = 1, 2; the first weights are copied."""
    net = network().double()
    batches = [(x.double(), y) for x, y in separable(3)]
    twin = network().double().train()
    optimiser = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=0.0)
    kept = None
    for t, (x, targets) in enumerate(batches):
        optimiser.param_groups[0]["lr"] = _poly(config(epochs=1, power=1.0), t, 3)
        optimiser.zero_grad()
        LOSS(twin(x), targets).backward()
        optimiser.step()
        now = {name: value.clone() for name, value in twin.state_dict().items()}
        decay = (1 + t) / (10 + t)
        kept = now if kept is None else {n: decay * kept[n] + (1 - decay) * now[n] for n in now}
    settings = config(epochs=1, power=1.0, weight_decay=0.0, gradient_clip=None, average_decay=0.999)
    fit(net, batches, loss=LOSS, config=settings, out=tmp_path)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, kept[name])


@pytest.mark.parametrize("every_steps", [0, 1])
def test_a_training_with_everything_goes_on_bit_for_bit(tmp_path, every_steps):
    teacher = network(3)

    def run(out, **options):
        net = network(5 if "resume" in options else 0)
        torch.manual_seed(1)
        head = PoolLinear(net[2].steps[0].conv.out_channels, 4)
        fit(
            net,
            loader(),
            loss=LOSS,
            config=config(
                average_decay=0.9, distillation_weight=0.5, checkpoint_every_steps=every_steps, epochs=3
            ),
            teacher=teacher,
            auxiliary={"2": head},
            out=tmp_path / out,
            **options,
        )
        return net.state_dict()

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("stopped", on_progress=signal_at(5, signal.SIGTERM))
    resumed = run("stopped", resume=True)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_teacher_and_its_weight_go_together():
    with pytest.raises(InvalidInput, match="distillation_weight is 0, and there is a teacher"):
        fit(network(), separable(1), loss=LOSS, config=config(), teacher=network(1))
    with pytest.raises(InvalidInput, match="distillation_weight is 1, and there is no teacher"):
        fit(network(), separable(1), loss=LOSS, config=config(distillation_weight=1.0))


def test_answers_in_the_batches_teach_as_their_teacher_does():
    teacher = network(3).eval()
    batches = list(loader())
    with torch.no_grad():
        taught = [(x, SoftTargets(y, teacher(x), torch.ones(len(x), dtype=torch.bool))) for x, y in batches]
    settings = config(epochs=2, distillation_weight=0.5, distillation_temperature=2.0)
    networks = [network(), network()]
    fit(networks[0], batches, loss=LOSS, config=settings, teacher=teacher)
    fit(networks[1], taught, loss=LOSS, config=settings, has_soft_targets=True)
    for name, value in networks[0].state_dict().items():
        torch.testing.assert_close(value, networks[1].state_dict()[name])
    with pytest.raises(InvalidInput, match="there is a teacher, and the batches have soft targets"):
        fit(network(), taught, loss=LOSS, config=settings, teacher=teacher, has_soft_targets=True)
    with pytest.raises(InvalidInput, match="distillation_weight is 0, and there are soft targets"):
        fit(network(), taught, loss=LOSS, config=config(), has_soft_targets=True)
    with pytest.raises(InvalidInput, match=r"batches are \(inputs, SoftTargets\(.*got list with Tensor"):
        fit(network(), batches, loss=LOSS, config=settings, has_soft_targets=True)


def test_soft_targets_are_told_from_targets_of_three():
    """A batch of three targets unpacks into three, as soft targets do."""
    three = [(torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2]))]
    with pytest.raises(InvalidInput, match="got tuple with Tensor"):
        fit(network(), three, loss=LOSS, config=config(distillation_weight=1.0), has_soft_targets=True)
    soft = [(x, SoftTargets(y, torch.zeros(3, 4), torch.ones(3).bool())) for x, y in three]
    with pytest.raises(InvalidInput, match=r"soft targets are for fit\(has_soft_targets=True\)"):
        fit(network(), soft, loss=LOSS, config=config())


def test_another_teacher_is_refused(tmp_path):
    def run(teacher, **options):
        settings = config(epochs=1, distillation_weight=0.5)
        return fit(
            network(), separable(1), loss=LOSS, config=settings, teacher=teacher, out=tmp_path, **options
        )

    run(network(3))
    run(network(3), resume=True)
    other = network(3)
    other[5].linear.bias.data[0] += 1e-3
    with pytest.raises(CheckpointError, match=r"belongs to another run:\n  teacher: checkpoint '\w+', asked"):
        run(other, resume=True)


def test_heads_that_read_elsewhere_are_refused(tmp_path):
    def run(place, **options):
        settings = config(epochs=1)
        # Both places give as many channels: nothing else tells the two trainings apart.
        heads = {place: PoolLinear(4, 4)}
        return fit(
            nn.Sequential(Conv(3, 4), Conv(4, 4), PoolLinear(4, 4)), separable(1), loss=LOSS, config=settings,
            auxiliary=heads, out=tmp_path, **options,
        )  # fmt: skip

    run("0")
    run("0", resume=True)
    with pytest.raises(CheckpointError, match=r"auxiliary: checkpoint \['0'\], asked \['1'\]"):
        run("1", resume=True)


def test_what_a_training_is_says_nothing_of_what_it_has_not(tmp_path):
    fit(network(), separable(1), loss=LOSS, config=config(epochs=1), out=tmp_path)
    assert json.loads((tmp_path / "fit.json").read_text()).keys() == {"network", "config", "data"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_training_without_a_recipe_does_not_take_the_place_of_one(resume, tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    how = {"loss": LOSS, "config": config(epochs=1), "out": tmp_path, "resume": resume}
    with pytest.raises(
        InvalidInput, match=r"recipe\.json says that the network there is trained by a recipe"
    ):
        fit(network(), separable(1), description={"data": "x"}, **how)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]
    fit(network(), separable(1), description={"stage": {}}, **how)
    assert (tmp_path / "weights.pt").is_file()


def test_a_finished_training_is_evaluated_as_it_was_trained(tmp_path, monkeypatch):
    seen = []

    def spy(*arguments, **options):
        seen.append(options)
        return evaluate_with(*arguments, **options)

    monkeypatch.setattr("hwnas.core.fit.evaluate_with", spy)

    def run(**options):
        how = {"loss": LOSS, "config": config(epochs=1, channels_last=True), "out": tmp_path}
        return fit(network(), separable(1), val=separable(1), metric=Accuracy(), **how, **options)

    assert run() == run(resume=True)
    assert seen[0] == seen[1] and seen[0]["channels_last"]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_compiled_training_steps_as_an_eager_one(weight, tmp_path, monkeypatch):
    """With the compiler's own front and gradient, and eager kernels: what is left out is code generation."""
    compile_, compiled = torch.compile, []

    def through_eager_kernels(network, **options):
        compiled.append(options)
        return compile_(network, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", through_eager_kernels)
    kept, teacher = [], network(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for compiled_here in (False, True):
        net = network()
        fit(
            net,
            separable(4),
            loss=LOSS,
            config=config(compiled=compiled_here, distillation_weight=weight),
            teacher=teacher if weight else None,
            out=tmp_path / str(compiled_here),
        )
        kept.append(net.state_dict())
    assert compiled == [{"dynamic": False}] * (2 if weight else 1)
    # In eval mode: it learns nothing, and its running statistics stay.
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    for name, value in kept[0].items():
        torch.testing.assert_close(kept[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_compiled_training_has_no_auxiliary_heads():
    net = network()
    name = next(name for name, module in net.named_modules() if isinstance(module, Conv))
    with pytest.raises(InvalidInput, match="train with compiled=False, or without the heads"):
        fit(net, separable(1), loss=LOSS, config=config(compiled=True), auxiliary={name: PoolLinear(4, 4)})
