"""What comes after training: exported files that keep the numbers, and predictions on pictures."""

from hwnas.deploy.description import Description as Description
from hwnas.deploy.export import Exported as Exported
from hwnas.deploy.export import export as export
from hwnas.deploy.onnx_network import OnnxNetwork as OnnxNetwork
from hwnas.deploy.segmenter import Segmenter as Segmenter
