"""The header of a table: the command that measures one under it."""

import inspect

from hwnas.latency.device import Device
from hwnas.latency.header import OPTIONS, UNNAMED_BACKEND, TableHeader
from hwnas.names import find_backend

HEADER = TableHeader(
    device=Device(kind="cuda", name="NVIDIA TITAN Xp"),
    backend="onnxruntime",
    input_shape=(3, 8, 8),
    space={"name": "chain"},
    settings={"provider": "tensorrt", "clock": "wall", "tf32": "allowed"},
)


def test_the_command_gives_the_options_that_the_table_was_measured_with():
    assert HEADER.command() == (
        "hwnas profile chain --device titanxp --backend onnxruntime --precision fp32 --batch 1 --threads 1 "
        "--set backend.provider=tensorrt --protocol isolated --out FILE"
    )


def test_of_networks_that_were_measured_elsewhere_there_is_none():
    assert HEADER.model_copy(update={"backend": UNNAMED_BACKEND}).command() is None


def test_options_are_what_the_backends_take_and_put_on_record():
    backends = [find_backend(name) for name in ("torch", "torch-compile", "onnxruntime", "tensorrt")]
    taken = {option for backend in backends for option in inspect.signature(backend).parameters}
    # Conditions have fields of their own in the header, and TensorRT's package is among the versions.
    assert taken - {"device", "precision", "threads", "package"} == set(OPTIONS)
