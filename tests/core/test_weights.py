import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from hwnas import Conv
from hwnas.core.checkpoint import load_checkpoint
from hwnas.core.weights import digest, load_weights, save_weights, transfer_weights
from hwnas.errors import CheckpointError

from .resumable import SPACE


def network(seed):
    torch.manual_seed(seed)
    return SPACE.build(SPACE.genotype({"s1.depth": 1, "s1.kernel": 1, "s2.depth": 0, "s2.kernel": 1}))


def test_weights_survive_a_file(tmp_path):
    one, other = network(0), network(1)
    save_weights(one, tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_weights_of_another_dilation_are_refused_though_their_shapes_agree(tmp_path: Path) -> None:
    save_weights(Conv(4, 4, dilation=2), tmp_path / "weights.pt")
    with pytest.raises(
        CheckpointError, match="weights of another network: shapes may agree, the layers do not"
    ):
        load_weights(Conv(4, 4, dilation=4), tmp_path / "weights.pt")
    load_weights(Conv(4, 4, dilation=2), tmp_path / "weights.pt")


def test_weights_of_other_classes_are_taken_over_but_for_the_last_layer():
    one, other = network(0), network(1)
    other[5].linear = nn.Linear(other[5].linear.in_features, 7)
    last = other[5].linear.weight.clone()
    assert transfer_weights(other, one.state_dict()) == ["5.linear.weight", "5.linear.bias"]
    assert torch.equal(other[5].linear.weight, last)
    assert torch.equal(other[0].conv.weight, one[0].conv.weight)
    with pytest.raises(CheckpointError, match="only 0 agree with those that it is to begin with"):
        transfer_weights(nn.Sequential(nn.Sequential(nn.Linear(2, 2))), one.state_dict())


def test_a_digest_is_of_names_and_values_alone(tmp_path):
    net = network(0)
    save_weights(net, tmp_path / "w.pt")
    first = digest(net.state_dict())
    assert first == digest(load_checkpoint(tmp_path / "w.pt")["weights"])
    assert digest(net.to(memory_format=torch.channels_last).state_dict()) == first
    assert digest(network(0).state_dict()) == first != digest(network(1).state_dict())
    assert digest({"a": torch.zeros(2)}) != digest({"b": torch.zeros(2)})
    assert digest({"a": torch.ones(2, dtype=torch.bfloat16)}) != digest({"a": torch.zeros(2).bfloat16()})


def test_a_digest_by_hand():
    expected = hashlib.sha256(b"a" + b"\x01\x00\x02\x00" + b"n" + b"\x07")
    weights = {"a": torch.tensor([1, 2], dtype=torch.int16), "n": torch.tensor(7, dtype=torch.uint8)}
    assert digest(weights) == expected.hexdigest()
