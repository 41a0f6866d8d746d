"""A search says when it fails: when choices end in nothing, too early, or never move."""

import math
import warnings
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from hwnas import (
    ArchParameters,
    Choice,
    ChoiceBlock,
    CollapseWarning,
    Conv,
    Op,
    PoolLinear,
    SearchConfig,
    SearchData,
    register_op,
    search,
)
from hwnas.core.collapse import CollapseMonitor, passive_options
from hwnas.core.runlog import read_log
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.chain import Chain

from .nets import ChoiceInChoice, Scale, Small, images, table_of

CHAIN = Chain(size=8, channels=4, num_classes=4, depth=2, kernels=(1, 3))


class Last(nn.Module):
    """Returns the second of its inputs: a skip by what it does."""

    def forward(self, *xs):
        return xs[-1]


@register_op("test.learnt")
class Learnt(Op):
    """Returns its input, but has something to learn."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.factor


@register_op("test.pool")
class Pool(Op):
    """Returns what is none of its inputs, without anything to learn."""

    def forward(self, x):
        return functional.max_pool2d(x, 3, 1, 1)


OPTIONS = {
    "conv": lambda: Conv(4, 4),
    "skip": nn.Identity,
    "skip_in_eval": lambda: nn.Dropout(0.5),
    "zero": lambda: Scale(0.0),
    "double": lambda: Scale(2.0),
    "pool": Pool,
    "learnt": Learnt,
}


class Edges(Small):
    """Six edges in a row, two of them sharing a choice that is a skip in one place only."""

    name: ClassVar[str] = "edges"
    edges: int = 5

    def supernet(self):
        options = tuple(OPTIONS)
        rows = [
            ChoiceBlock(
                Choice(name=f"e{n}", options=options), {name: make() for name, make in OPTIONS.items()}
            )
            for n in range(self.edges)
        ]
        shared = Choice(name="shared", options=("conv", "skip", "zero"))
        rows += [
            ChoiceBlock(shared, {"conv": Conv(4, 4), "skip": nn.Identity(), "zero": Scale(0.0)}),
            ChoiceBlock(shared, {"conv": Conv(4, 4), "skip": Conv(4, 4, kernel=1), "zero": Scale(0.0)}),
        ]
        return nn.Sequential(Conv(3, 4), *rows, PoolLinear(4, 2))


def test_an_option_is_passive_by_what_it_does():
    space = Edges()
    found = passive_options(space.supernet(), space.record())
    names = list(OPTIONS)
    passive = frozenset({names.index("skip"), names.index("skip_in_eval"), names.index("zero")})
    assert found == {**{f"e{n}": passive for n in range(5)}, "shared": frozenset({2})}


def test_several_inputs_may_be_skipped_to():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = Conv(3, 4)
            options = {"last": Last(), "sum": torch.nn.Bilinear(5, 5, 5)}
            self.block = ChoiceBlock(Choice(name="two", options=tuple(options)), options)
            self.head = PoolLinear(4, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.block(x, x + 1))

    class TwoInputs(Small):
        name: ClassVar[str] = "two_inputs"

        def supernet(self):
            return Two()

    space = TwoInputs()
    assert passive_options(space.supernet(), space.record()) == {"two": frozenset({0})}


def test_options_with_choices_inside_are_not_tried():
    # "plain" is a skip where the choice comes first, and a convolution where it comes again inside of "rich".
    space = ChoiceInChoice()
    assert passive_options(space.supernet(), space.record()) == {}


def test_the_supernet_is_left_as_it_was():
    space = Edges()
    net = space.supernet().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    passive_options(net, space.record())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_autortnet_declares_nothing_and_its_zeros_and_skips_are_known():
    space = AutoRTNet.from_preset("small", num_classes=4)
    found = passive_options(space.supernet(), space.record())
    choices = space.choices()
    named = {name: {choices[name].options[k] for k in options} for name, options in found.items()}
    assert named["h1.normal.e0-2"] == {"zero", "skip"}
    # In a reduction cell a skip halves the image by convolutions.
    assert named["h1.reduction.e0-2"] == {"zero"}


def monitor_of(space=None):
    space = space or Edges()
    net = space.supernet()
    arch = ArchParameters(net)
    return arch, CollapseMonitor(arch, space.record(), passive_options(net, space.record()))


def prefer(arch, option, names, logit=1.0):
    for name in names:
        options = arch.choices[arch.rows[name]].options
        arch.set_logits({name: [logit if k == option else 0.0 for k in range(len(options))]})


SKIP = list(OPTIONS).index("skip")


def test_the_numbers():
    arch, monitor = monitor_of()
    prefer(arch, SKIP, ["e0", "e1"], logit=math.log(3))
    values = monitor.values()
    # Two of the five edges and the shared choice; an option of weight 3 among seven has 3/9 instead of 1/7.
    assert values["passive"] == pytest.approx(2 / 6)
    assert values["moved"] == pytest.approx(3 / 9 - 1 / 7)
    entropy = -(3 / 9 * math.log(3 / 9) + 6 / 9 * math.log(1 / 9)) / math.log(7)
    assert values["entropy"] == {"op": pytest.approx((2 * entropy + 4) / 6)}


def test_a_space_where_nothing_is_passive_has_no_share():
    _, monitor = monitor_of(CHAIN)
    assert monitor.values()["passive"] is None
    assert set(monitor.values()["entropy"]) == {"op", "depth"}


def test_more_passive_ops_than_halfway_from_chance_to_all_are_said_once_by_name():
    # Chance: (5 · 3/7 + 1/3) / 6 = 0.41, halfway to all 0.71: four of six are 0.67, five 0.83.
    arch, monitor = monitor_of()
    prefer(arch, SKIP, ["e0", "e1", "e2", "e3"])
    assert monitor.newly_seen(100, 0.3) == []
    prefer(arch, SKIP, ["e4"])
    seen = [("passive", ["e0", "e1", "e2", "e3", "e4"])]
    assert monitor.newly_seen(100, 0.3) == seen
    assert monitor.newly_seen(100, 0.3) == []
    assert "skips or zeroes e0, e1, e2, e3, e4: little is left" in monitor.advice(*seen[0])


def test_few_ops_are_not_judged():
    space = Edges(edges=2)
    arch, monitor = monitor_of(space)
    prefer(arch, SKIP, ["e0", "e1"], logit=0.5)
    assert monitor.newly_seen(100, 0.3) == []


@pytest.mark.parametrize(("done", "seen"), [(0.25, True), (0.26, False)])
def test_decisions_in_the_first_quarter_are_early(done, seen):
    arch, monitor = monitor_of()
    prefer(arch, 0, ["e0", "e1", "e2"], logit=9.0)
    assert monitor.newly_seen(100, done) == []  # half of the six, not more
    prefer(arch, 0, ["e3"], logit=9.0)
    said = [("early", ["e0", "e1", "e2", "e3"])] if seen else []
    assert monitor.newly_seen(100, done) == said


def test_probabilities_that_do_not_move_are_said_at_half_time():
    arch, monitor = monitor_of()
    prefer(arch, 0, ["e0"], logit=0.1)
    assert monitor.newly_seen(100, 0.49) == []
    ((sign, names),) = monitor.newly_seen(100, 0.5)
    assert (sign, len(names)) == ("still", 6)
    # An option of weight e^0.1 among seven: 0.1555 instead of 0.1429.
    assert "moved by at most 1.3 %" in monitor.advice(sign, names)
    assert "Raise arch_lr" in monitor.advice(sign, names)


def test_nothing_is_judged_by_a_few_steps():
    _, monitor = monitor_of()
    assert monitor.newly_seen(99, 1.0) == []
    assert [sign for sign, _ in monitor.newly_seen(1, 1.0)] == ["still"]


def test_choices_that_never_had_two_options_are_no_decisions():
    space = Edges()
    net = space.supernet()
    arch = ArchParameters(net)
    arch.alive[:, 1:] = False
    monitor = CollapseMonitor(arch, space.record(), passive_options(net, space.record()))
    assert monitor.newly_seen(100, 0.2) == []


def test_choices_that_a_pruner_left_one_option_of_are_decided():
    arch, monitor = monitor_of()
    arch.alive[arch.rows["e0"], 1:] = False
    arch.alive[arch.rows["e1"], 1:] = False
    prefer(arch, 0, ["e2"], logit=9.0)
    assert monitor.newly_seen(100, 0.2) == []  # half of the six, not more
    arch.alive[arch.rows["e3"], 1:] = False
    # In a resumed search, the monitor is made before it knows where probabilities began.
    other = CollapseMonitor(arch, monitor.recording, monitor.passive)
    other.load_state_dict(monitor.state_dict())
    assert other.newly_seen(0, 0.2) == [("early", ["e0", "e1", "e2", "e3"])]


def test_its_state_goes_through_a_checkpoint():
    arch, monitor = monitor_of()
    assert [sign for sign, _ in monitor.newly_seen(100, 1.0)] == ["still"]
    prefer(arch, 0, ["e0"])
    other = CollapseMonitor(arch, monitor.recording, monitor.passive)
    other.load_state_dict(monitor.state_dict())
    assert other.values() == monitor.values()
    assert other.newly_seen(0, 1.0) == []


def run(tmp_path, lut=None, **values):
    config = SearchConfig(**{"device": "cpu", "epochs": 4, "weight_lr": 0.01, **values})
    search(CHAIN, lut, SearchData(images(30)), config, out=tmp_path)
    return read_log(tmp_path / "search.log.jsonl")


def test_a_search_that_hardly_moves_says_so_once_in_the_log_too(tmp_path):
    with pytest.warns(CollapseWarning, match=r"probabilities of s1\..* moved by at most") as caught:
        events = run(tmp_path, arch_lr=1e-5)
    assert len(caught) == 1
    (warning,) = [event for event in events if event["event"] == "warning"]
    # 120 steps: half of the training is over after two epochs, a hundred steps after four.
    assert warning["epoch"] == 3
    assert warning["text"] == str(caught[0].message)
    assert sorted(warning["choices"]) == ["s1.depth", "s1.kernel", "s2.depth", "s2.kernel"]
    assert all(set(e["collapse"]) == {"passive", "entropy", "moved"} for e in events if e["event"] == "epoch")


def test_a_search_that_moves_says_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path, arch_lr=0.05, lut=table_of(CHAIN), penalty={"form": "linear", "weight": 0.05})


def test_a_supernet_trained_with_frozen_choices_says_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path, arch_from_epoch=4)
