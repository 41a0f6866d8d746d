import json

import pytest
from pydantic import ValidationError
from torch import nn

from hwnas import Conv, Op, OpKey, OpSpec, register_op
from hwnas.errors import InvalidInput, SpaceError
from hwnas.ops import build_op, registered_ops


def test_specs_are_equal_whatever_the_order_of_the_attributes():
    one = OpSpec(kind="t.x", attributes=(("b", 2), ("a", 1)))
    other = OpSpec(kind="t.x", attributes=(("a", 1), ("b", 2)))
    assert one == other
    assert hash(one) == hash(other)
    assert str(one) == "t.x(a=1, b=2)"


def test_keys_differ_by_the_shapes_of_their_inputs_alone():
    spec = Conv(3, 4).spec
    small, large = (
        OpKey(spec=spec, input_shapes=((1, 3, 8, 8),)),
        OpKey(spec=spec, input_shapes=((1, 3, 9, 8),)),
    )
    assert small != large
    assert str(small).endswith("@ 1x3x8x8")


@pytest.mark.parametrize(
    "attributes",
    [
        (("flag", True), ("n", 1)),
        (("flag", False), ("n", 0)),
        (("rate", 0.5), ("name", "a")),
        (("rate", 1.0),),
        (("sizes", (1, 2, 3)),),
        (),
    ],
)
def test_keys_survive_json_with_their_types(attributes):
    key = OpKey(spec=OpSpec(kind="t.x", attributes=attributes), input_shapes=((1, 2), (3,)))
    again = OpKey.model_validate(json.loads(key.model_dump_json()))
    assert again == key
    assert hash(again) == hash(key)
    for (_, before), (_, after) in zip(key.spec.attributes, again.spec.attributes, strict=True):
        assert type(before) is type(after)


def test_a_key_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Conv(3, 4).spec.kind = "other"  # type: ignore[misc]


def test_an_op_is_rebuilt_from_its_spec():
    spec = Conv(3, 6, kernel=5, stride=2, groups=3).spec
    rebuilt = build_op(spec)
    assert isinstance(rebuilt, Conv)
    assert rebuilt.spec == spec
    assert rebuilt.conv.weight.shape == (6, 1, 5, 5)


def test_an_unregistered_op_is_refused():
    class Nameless(Op):
        pass

    with pytest.raises(
        SpaceError, match=r'Nameless is not a registered op.*@register_op\("<space>\.nameless"\)'
    ):
        Nameless()


def test_a_subclass_of_a_registered_op_must_be_registered_itself():
    class Wider(Conv):
        pass

    with pytest.raises(SpaceError, match="Wider is not a registered op"):
        Wider(3, 4)


def test_a_kind_belongs_to_one_class():
    with pytest.raises(SpaceError, match=r'"hwnas\.conv" is taken by hwnas\.layers\.Conv'):

        @register_op("hwnas.conv")
        class Other(nn.Module):  # type: ignore[type-var]
            pass

    assert registered_ops()["hwnas.conv"] is Conv


def test_registering_a_class_again_after_a_reload_is_allowed():
    assert register_op("hwnas.conv")(Conv) is Conv


def test_the_list_of_registered_ops_is_a_copy():
    registered_ops().clear()  # type: ignore[attr-defined]
    assert "hwnas.conv" in registered_ops()


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(InvalidInput, match=r'no op is registered as "t\.none".*hwnas\.conv'):
        build_op(OpSpec(kind="t.none"))


def test_attributes_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInput, match="does not fit the constructor of Conv"):
        build_op(OpSpec(kind="hwnas.conv", attributes=(("sides", 3),)))
