"""Running a file: what is taken, what is refused, and what a damaged description says."""

import onnx
import pytest
import torch
from torch import nn

from hwnas.deploy import Description, OnnxNetwork, export
from hwnas.errors import DataError, InvalidInput
from hwnas.latency.export import export_onnx, with_batch
from tests.deploy.nets import LABELLING, SHAPE, images, trained

pytest.importorskip("onnxruntime")


def test_a_fixed_batch_is_run_as_often_as_needed(tmp_path):
    net = trained()
    export_onnx(net, [images(2)], tmp_path / "two.onnx", dynamic_batch=False)
    network = OnnxNetwork(tmp_path / "two.onnx")
    assert network.description is None and network.size == (16, 24)
    with torch.no_grad():
        assert torch.allclose(network(images(4)), net(images(4)), atol=1e-5)
    with pytest.raises(InvalidInput, match=r"16x24 .*, 2 at a time; got"):
        network(images(3))


def test_other_sizes_are_refused(tmp_path):
    export(trained(), SHAPE, tmp_path / "n.onnx")
    with pytest.raises(InvalidInput, match=r"takes images of 16x24 \(height x width\); got \[1, 3, 8, 8\]"):
        OnnxNetwork(tmp_path / "n.onnx")(torch.zeros(1, 3, 8, 8))


def test_what_is_no_exported_network_is_refused(tmp_path):
    with pytest.raises(DataError, match="hwnas export RUN --out"):
        OnnxNetwork(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(DataError, match="no model that ONNX Runtime can run"):
        OnnxNetwork(tmp_path / "text.onnx")
    export_onnx(nn.Linear(3, 2), [torch.rand(1, 3)], tmp_path / "flat.onnx")
    with pytest.raises(DataError, match=r"should take one image.*it has input tensor\(float\)"):
        OnnxNetwork(tmp_path / "flat.onnx")


def test_a_damaged_description_is_named(tmp_path):
    metadata = Description(version="1", precision="int8", labelling=LABELLING).metadata()
    assert Description.read(metadata, "n.onnx").labelling == LABELLING
    with pytest.raises(DataError, match=r"the metadata of n.onnx are damaged:\n  precision"):
        Description.read(metadata | {"hwnas.precision": "int3"}, "n.onnx")
    with pytest.raises(DataError, match=r"the metadata of n.onnx are damaged"):
        Description.read(metadata | {"hwnas.classes": "["}, "n.onnx")
    with pytest.raises(DataError, match="4 classes, but 1 colours"):
        Description.read(metadata | {"hwnas.palette": "[[1, 2, 3]]"}, "n.onnx")


def test_a_description_of_before_schemas_is_of_the_first():
    written = Description(version="1", precision="int8", labelling=LABELLING)
    old = {name: text for name, text in written.metadata().items() if name != "hwnas.schema_version"}
    assert len(old) == len(written.metadata()) - 1
    assert Description.read(old, "n.onnx") == written


def test_a_description_of_a_newer_schema_is_refused_whatever_else_it_says(tmp_path):
    metadata = Description(version="9", precision="fp32").metadata() | {"hwnas.schema_version": "2"}
    with pytest.raises(
        DataError, match=r"the metadata of n.onnx have schema 2, this hwnas reads up to 1: upg"
    ):
        Description.read(metadata | {"hwnas.precision": "int3", "hwnas.new": "["}, "n.onnx")
    with pytest.raises(DataError, match=r"the metadata of n.onnx are damaged"):
        Description.read(metadata | {"hwnas.schema_version": "two"}, "n.onnx")
    export(trained(), SHAPE, tmp_path / "n.onnx")
    model = onnx.load(tmp_path / "n.onnx")
    (prop,) = (prop for prop in model.metadata_props if prop.key == "hwnas.schema_version")
    prop.value = "2"
    onnx.save(model, tmp_path / "n.onnx")
    with pytest.raises(DataError, match=r"n\.onnx have schema 2"):
        OnnxNetwork(tmp_path / "n.onnx")


def test_a_batch_size_is_fixed(tmp_path):
    export(trained(), SHAPE, tmp_path / "n.onnx")
    fixed = with_batch((tmp_path / "n.onnx").read_bytes(), 3)
    shape = onnx.load_from_string(fixed).graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_value for axis in shape] == [3, 3, 16, 24]
    (tmp_path / "three.onnx").write_bytes(fixed)
    net = OnnxNetwork(tmp_path / "three.onnx")
    # Whose it is stays in it.
    assert net.description is not None
    assert net(images(3)).shape == (3, 4, 16, 24)
    with pytest.raises(InvalidInput, match="takes 3 images at a time, not 1"):
        with_batch(fixed, 1)
    with pytest.raises(InvalidInput, match="no ONNX model"):
        with_batch(b"text", 1)
