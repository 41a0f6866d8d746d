"""An ONNX file as a network: what evaluates, predicts and compares runs the file itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.deploy.description import Description
from hwnas.errors import DataError, InvalidInput
from hwnas.latency.export import require_onnxruntime

_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxNetwork(nn.Module):
    """An exported segmentation network, computed by ONNX Runtime on the CPU.

    ``forward`` takes what the network takes, ``[N, 3, H, W]`` floating, and gives logits
    ``[N, classes, H, W]`` fp32 or, of a file with the argmax in its graph, class numbers ``[N, H, W]`` int64.
    A file of one fixed batch size is run as often as needed.

    Args:
        path: the ``.onnx`` file.
        threads: of the CPU; by default as many as PyTorch uses.

    Attributes:
        description: what the file says of itself; None where hwnas did not write it.
        size: height and width of its pictures.

    Raises:
        DataError: no such file, or not a network from one image to one map.
        MissingExtra: ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        super().__init__()
        runtime = require_onnxruntime("run an exported network")
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"no file {self.path}; hwnas export RUN --out {self.path} writes one.")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(
                self.path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise DataError(f"{self.path} is no model that ONNX Runtime can run: {error}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape if inputs else []
        if (
            len(inputs) != 1
            or len(outputs) != 1
            or len(shape) != 4
            or inputs[0].type not in _NUMPY_TYPES
            or not all(isinstance(extent, int) for extent in shape[1:])
        ):
            listed = ", ".join(f"{node.name} {node.type} {node.shape}" for node in (*inputs, *outputs))
            raise DataError(
                f"{self.path} should take one image [N, 3, H, W] of a fixed height and width and give one "
                f"map; it has {listed}"
            )
        self._input, self._type = inputs[0].name, _NUMPY_TYPES[inputs[0].type]
        self._batch = shape[0] if isinstance(shape[0], int) else None
        self.size = (int(shape[2]), int(shape[3]))
        self.description = Description.read(
            self._session.get_modelmeta().custom_metadata_map, where=str(self.path)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits or class numbers, on the device of ``x_NCHW``.

        Raises:
            InvalidInput: images of another size, or that do not fill a fixed batch.
        """
        batch = self._batch or len(x_NCHW)
        if tuple(x_NCHW.shape[2:]) != self.size or len(x_NCHW) % batch:
            raise InvalidInput(
                f"{self.path} takes images of {self.size[0]}x{self.size[1]} (height x width)"
                f"{f', {batch} at a time' if self._batch else ''}; got {list(x_NCHW.shape)}"
            )
        images = x_NCHW.detach().cpu().numpy().astype(self._type)
        outputs = [
            self._session.run(None, {self._input: images[start : start + batch]})[0]
            for start in range(0, len(images), batch)
        ]
        found = torch.from_numpy(np.concatenate(outputs)).to(x_NCHW.device)
        return found.float() if found.is_floating_point() else found.long()
