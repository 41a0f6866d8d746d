"""The fake backend and fake tables: a formula's milliseconds, exactly, everywhere."""

import pytest
import torch
from torch import nn

from hwnas.errors import DeviceNotFound, InvalidInput, MeasurementFailed, SpaceError, TableMismatch
from hwnas.latency.device import Device
from hwnas.latency.fake import FAKE_DEVICE, FakeBackend, default_formula, fake_table
from hwnas.latency.profile import profile_keys
from hwnas.latency.torch import TorchBackend
from hwnas.layers import Add, Conv
from hwnas.ops import OpKey, OpSpec


def key(shape=(1, 8, 10, 10), **attributes):
    return OpKey(spec=OpSpec(kind="test.op", attributes=tuple(attributes.items())), input_shapes=(shape,))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.add = Conv(3, 8, stride=2), Conv(8, 8), Add()

    def forward(self, x):
        x = self.stem(x)
        return self.add(x, self.body(self.body(x)))


def test_default_formula_by_hand():
    # 800 elements. Call 0.002 ms; traffic 4 · 800 / 10e9 s = 0.00032 ms.
    assert default_formula(key()) == pytest.approx(0.002 + 0.00032 + 800 / 20e9 * 1e3)
    # Conv 3×3 to 16 channels, stride 2: 800 · 9 · 16 / 4 = 28,800 multiplications.
    assert default_formula(key(kernel=3, c_out=16, stride=2)) == pytest.approx(0.00232 + 28_800 / 20e9 * 1e3)
    # The channel count stands in for c_out of a convolution, twice over: 800 · 2 · 9 · 8 = 115,200.
    assert default_formula(key(kernel=3, channels=8, repeat=2)) == pytest.approx(0.00232 + 115_200 / 20e6)


def test_default_formula_grows_with_size():
    assert default_formula(key((1, 8, 20, 10))) > default_formula(key())
    assert default_formula(key((2, 8, 10, 10))) > default_formula(key())
    assert default_formula(key(kernel=5)) > default_formula(key(kernel=3))
    assert default_formula(key(kernel=3, c_out=8, groups=8)) < default_formula(key(kernel=3, c_out=8))


def test_a_network_costs_the_sum_of_its_ops_and_is_not_changed():
    net, x = Net(), torch.rand(1, 3, 16, 16)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    prices = {"hwnas.conv": 2.0, "hwnas.add": 0.5}
    read = FakeBackend(lambda key: prices[key.spec.kind]).prepare(net, [x])
    # Three convolutions (the body runs twice) and one addition: 3 · 2 + 0.5.
    assert [read(), read()] == [6.5, 6.5]
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_one_op_costs_its_formula():
    op, x = Conv(3, 8), torch.rand(1, 3, 16, 16)
    expected = default_formula(OpKey(spec=op.spec, input_shapes=((1, 3, 16, 16),)))
    assert FakeBackend().prepare(op, [x])() == expected


def test_a_module_without_ops():
    with pytest.raises(MeasurementFailed, match=r"Conv2d calls no op .* Time it with the torch backend"):
        FakeBackend().prepare(nn.Conv2d(3, 8, 3), [torch.rand(1, 3, 16, 16)])


def test_field_defect_failed_measurement_is_an_error():
    with pytest.raises(
        MeasurementFailed, match=r"Conv does not run on inputs \[\(1, 4, 16, 16\)\]: RuntimeError"
    ):
        FakeBackend().prepare(Conv(3, 8), [torch.rand(1, 4, 16, 16)])


def test_a_supernet_has_no_latency_of_its_own():
    from hwnas.search_spaces.chain import Chain

    space = Chain()
    with pytest.raises(MeasurementFailed, match="is a supernet: what it costs depends on its choices"):
        FakeBackend().prepare(space.supernet(), [torch.rand(1, *space.input_shape())])


def test_what_a_header_is_told():
    backend = FakeBackend()
    backend.check()
    assert (backend.name, backend.device, backend.precision, backend.versions()) == (
        "fake",
        FAKE_DEVICE,
        "fp32",
        {},
    )
    assert FakeBackend(device="auto").device == FAKE_DEVICE
    with pytest.raises(DeviceNotFound, match='no device is known as "banana"'):
        FakeBackend(device="banana")
    with pytest.raises(InvalidInput, match='precision must be one of fp32, fp16, bf16; got "int3"'):
        FakeBackend(precision="int3")


@pytest.mark.parametrize("device", ["auto", "fake", "cpu", Device(kind="cpu", name="AMD EPYC")])
def test_a_fake_table_is_never_one_of_a_real_device(device):
    backend = FakeBackend(device=device)
    assert backend.device == FAKE_DEVICE
    table = profile_keys(
        [OpKey(spec=Conv(3, 8).spec, input_shapes=((1, 3, 16, 16),))], backend, input_shape=(3, 16, 16)
    )
    assert (table.header.device.kind, table.header.backend) == ("fake", "fake")
    assert FAKE_DEVICE.answers_to("fake")
    for asked in ({"device": "cpu"}, {"device": Device.find("cpu")}, {"backend": TorchBackend("cpu")}):
        with pytest.raises(TableMismatch, match="fake"):
            table.check(**asked)


def test_fake_table_has_the_formula_and_no_real_device_takes_it():
    keys = [key(), key((1, 16, 5, 5))]
    table = fake_table(keys, lambda key: key.input_shapes[0][1] / 4)
    assert [table.latency_ms(k) for k in keys] == [2, 4]
    assert (table.header.backend, table.header.protocol) == ("fake", "formula")
    with pytest.raises(TableMismatch, match="device kind: fake against cpu"):
        table.check(device=Device(kind="cpu", name="AMD EPYC"))


def test_input_shape_of_a_fake_table():
    keys = [key((2, 3, 32, 64)), key((2, 8, 16, 32))]
    assert fake_table(keys, batch=2).header.input_shape == (3, 32, 64)
    assert fake_table(keys, batch=2, input_shape=(3, 9, 9)).header.input_shape == (3, 9, 9)
    assert fake_table([], input_shape=(3, 9, 9)).header.input_shape == (3, 9, 9)
    with pytest.raises(InvalidInput, match="a fake table without keys needs an input_shape"):
        fake_table([])


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_formula_that_gives_no_latency(value):
    with pytest.raises(
        InvalidInput, match=rf"finite milliseconds of 0 or more; for test.op.* it gave {value}"
    ):
        fake_table([key()], lambda key: value)


def test_keys_of_another_batch_size():
    with pytest.raises(InvalidInput, match="the table is for batch 1, but"):
        fake_table([key((4, 8, 10, 10))])


def test_what_is_computed_outside_of_ops_is_refused():
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = Conv(3, 4)

        def forward(self, x):
            return self.conv(x) / 2

    with pytest.raises(SpaceError, match="outside of any op"):
        FakeBackend().prepare(Halved(), [torch.zeros(1, 3, 8, 8)])
