"""A hard search says which of its choices the task teaches nothing."""

import math
import warnings
from typing import ClassVar

import pytest
import torch
from torch import nn

from hwnas import (
    ArchParameters,
    BlindChoiceWarning,
    Choice,
    ChoiceBlock,
    Conv,
    PoolLinear,
    SearchConfig,
    SearchData,
    assigned,
    search,
)
from hwnas.core.blindness import BlindnessMonitor, network_side
from hwnas.core.relaxation import Draw, GumbelSoftmax
from hwnas.core.runlog import read_log
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.chain import Chain

from .nets import ChoiceInDepth, Small

CHAIN = Chain(size=16, channels=4, num_classes=4, stages=3, depth=2, kernels=(1, 3))


def images(n=8, classes=4, side=16, maps=False):
    generator = torch.Generator().manual_seed(0)
    shape = (4, side, side) if maps else (4,)
    return [
        (
            torch.randn(4, 3, side, side, generator=generator),
            torch.randint(classes, shape, generator=generator),
        )
        for _ in range(n)
    ]


def run(space, batches, out=None, resume=False, on_progress=None, **values):
    straight_through_ops = {"score_kinds": ("depth", "input")}
    config = SearchConfig(**{"device": "cpu", "epochs": 2, **straight_through_ops, **values})
    data = SearchData(batches)
    return search(space, None, data, config, out=out, resume=resume, on_progress=on_progress)


def epochs(out):
    return [event for event in read_log(out / "search.log.jsonl") if event["event"] == "epoch"]


def test_a_plain_chain_of_convolutions_warns_once_and_names_them(tmp_path):
    with pytest.warns(BlindChoiceWarning) as caught:
        run(CHAIN, images(), tmp_path)
    assert len(caught) == 1
    text = str(caught[0].message)
    # The last stage is read by the classifier, to which scale matters; depths have the score function.
    assert "no gradient to s1.kernel, s2.kernel:" in text
    assert text.endswith("""--set 'score_kinds=["op","depth","input"]'""")
    warned = [event for event in read_log(tmp_path / "search.log.jsonl") if event["event"] == "warning"]
    assert warned == [{"event": "warning", "epoch": 0, "choices": ["s1.kernel", "s2.kernel"], "text": text}]
    gradient = epochs(tmp_path)[0]["task_gradient"]
    assert max(gradient["s1.kernel"], gradient["s2.kernel"], gradient["s1.depth"]) < 1e-4
    assert min(gradient["s3.kernel"], gradient["s3.depth"]) > 1e-3


def test_kinds_that_have_the_score_function_are_not_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(CHAIN, images(), score_kinds=SearchConfig().score_kinds)


def test_depths_without_the_score_function_are_named():
    with pytest.warns(BlindChoiceWarning, match=r"to s1\.depth, s2\.depth:"):
        run(CHAIN, images(), score_kinds=("op",))


def test_autortnet_has_no_blind_ops(tmp_path):
    space = AutoRTNet.from_preset("small", num_classes=4, cells=(1, 2, 2), height=32, width=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(space, images(side=32, maps=True), tmp_path)
    gradient = epochs(tmp_path)[0]["task_gradient"]
    assert gradient["h2.depth"] < 1e-4 < gradient["h2.reduction.e0-2"]


def test_a_soft_search_is_not_watched(tmp_path):
    run(CHAIN, images(), tmp_path, relaxation=GumbelSoftmax(hard=False))
    assert all(set(event["task_gradient"].values()) == {None} for event in epochs(tmp_path))


def test_it_is_judged_when_architecture_parameters_first_move(tmp_path):
    with pytest.warns(BlindChoiceWarning):
        run(CHAIN, images(), tmp_path, epochs=3, arch_from_epoch=1)
    events = [event["event"] for event in read_log(tmp_path / "search.log.jsonl")]
    steps = ["step"] * 8
    assert events == [*steps, "epoch", *steps, "epoch", "warning", *steps, "epoch", "end"]


def test_after_a_resume_it_is_not_said_again(tmp_path):
    def stop(progress):
        if progress.end_of_epoch and progress.epoch == 1:
            raise ZeroDivisionError

    with pytest.warns(BlindChoiceWarning), pytest.raises(ZeroDivisionError):
        run(CHAIN, images(), tmp_path, epochs=3, on_progress=stop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(CHAIN, images(), tmp_path, epochs=3, resume=True)
    assert [e["event"] for e in read_log(tmp_path / "search.log.jsonl")].count("warning") == 1


class AllBlind(Small):
    """Nothing in it learns: the whole network's scale is taken out at its end."""

    name: ClassVar[str] = "all_blind"

    def supernet(self):
        options = {"k1": Conv(3, 4, kernel=1), "k3": Conv(3, 4)}
        choice = ChoiceBlock(Choice(name="op", options=tuple(options)), options)
        return nn.Sequential(choice, Conv(4, 4), PoolLinear(4, 4))


def test_it_is_noticed_where_every_choice_is_blind():
    batches = [(x[..., :6, :5], y) for x, y in images()]
    with pytest.warns(BlindChoiceWarning, match="no gradient to op:"):
        run(AllBlind(), batches)


def monitor_of(space, score_kinds=()):
    arch = ArchParameters(space.supernet())
    return arch, BlindnessMonitor(arch, score_kinds)


def one_hot(arch, **chosen):
    draw = arch.one_hot(chosen)
    return Draw(draw.weights.requires_grad_(), draw.index)


def send_back(arch, monitor, loss, **gradient):
    """One step: the network sends ``gradient`` (by choice) back to the options drawn, the first ones."""
    seen = network_side(one_hot(arch))
    monitor.watch(seen, loss)
    sum(seen.weights[arch.rows[name], 0] * value for name, value in gradient.items()).backward()


def test_the_mean_is_over_the_steps_that_sent_something():
    arch, monitor = monitor_of(ChoiceInDepth())
    send_back(arch, monitor, 1.0, a=2.0, b=0.0, d=3.0)
    send_back(arch, monitor, 1.0, a=-4.0, b=-1.0)
    # b drew an op that gives zeros, or was cut off, in the first step; c in both.
    assert monitor.means() == {"d": 3.0, "a": 3.0, "b": 1.0, "c": None}
    monitor.clear()
    assert set(monitor.means().values()) == {None}


def test_the_penalty_does_not_count():
    arch, monitor = monitor_of(ChoiceInDepth())
    draw = one_hot(arch)
    seen = network_side(draw)
    monitor.watch(seen, 1.0)
    (seen.weights[:, 0].sum() * 0.5 + draw.weights.sum() * 1000).backward()
    assert monitor.means()["a"] == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_does_not_count(value):
    arch, monitor = monitor_of(ChoiceInDepth())
    for task, factor in ((1.0, 2.0), (value, 1.0), (1.0, value)):
        seen = network_side(one_hot(arch))
        monitor.watch(seen, task)
        (seen.weights[:, 0].sum() * factor).backward()
    assert monitor.means()["a"] == 2.0


def test_a_share_of_the_loss_decides():
    # 1e-3 is less than a ten-thousandth of 11, and not of 9.
    for loss, blind in ((9.0, []), (11.0, ["a"])):
        arch, monitor = monitor_of(ChoiceInDepth())
        for _ in range(8):
            send_back(arch, monitor, loss, a=1e-3, b=1.0)
        assert monitor.newly_blind() == blind
        assert monitor.newly_blind() == []


def test_a_choice_is_not_judged_by_a_few_steps():
    arch, monitor = monitor_of(ChoiceInDepth())
    for _ in range(7):
        send_back(arch, monitor, 1.0, a=1e-9, b=1e-9)
    assert monitor.newly_blind() == []
    monitor.clear()
    send_back(arch, monitor, 1.0, a=1e-9)
    # Eight steps of a, over two epochs; b has seven.
    assert monitor.newly_blind() == ["a"]


def test_a_choice_of_one_live_option_has_nothing_to_learn():
    arch, monitor = monitor_of(ChoiceInDepth())
    arch.alive[arch.rows["a"], 1:] = False
    for _ in range(8):
        send_back(arch, monitor, 1.0, a=1e-9)
    assert monitor.newly_blind() == []


def test_watching_changes_no_gradient():
    space = ChoiceInDepth()
    arch, monitor = monitor_of(space)
    net = space.supernet()
    x = torch.randn(2, 3, 6, 5)
    gradients = []
    for watched in (False, True):
        draw = one_hot(arch, d=2)
        seen = network_side(draw)
        if watched:
            monitor.watch(seen, 1.0)
        with assigned(net, arch, seen):
            net(x).square().sum().backward()
        gradients.append(draw.weights.grad)
    assert torch.equal(*gradients)
    assert float(gradients[0].abs().sum()) > 0
