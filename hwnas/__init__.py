"""hwnas: hardware-aware neural architecture search.

A search space gives a supernet, a latency table says what its ops cost on one device, and a differentiable
search finds the network that does the task well within the milliseconds.
"""

from hwnas.core.accuracy import Accuracy as Accuracy
from hwnas.core.arch import ArchParameters as ArchParameters
from hwnas.core.arch import assigned as assigned
from hwnas.core.baseline import BaselineResult as BaselineResult
from hwnas.core.baseline import baseline as baseline
from hwnas.core.baseline_config import AgeingEvolution as AgeingEvolution
from hwnas.core.baseline_config import BaselineConfig as BaselineConfig
from hwnas.core.baseline_config import RandomSearch as RandomSearch
from hwnas.core.baseline_config import SharedWeights as SharedWeights
from hwnas.core.baseline_config import ShortTraining as ShortTraining
from hwnas.core.blindness import BlindChoiceWarning as BlindChoiceWarning
from hwnas.core.budget_config import BudgetConfig as BudgetConfig
from hwnas.core.choice import Choice as Choice
from hwnas.core.choice import ChoiceBlock as ChoiceBlock
from hwnas.core.choice import DepthBlock as DepthBlock
from hwnas.core.choice import InputBlock as InputBlock
from hwnas.core.collapse import CollapseWarning as CollapseWarning
from hwnas.core.derive import derive as derive
from hwnas.core.evaluation import evaluate as evaluate
from hwnas.core.expected import ExpectedLatency as ExpectedLatency
from hwnas.core.fit import FitConfig as FitConfig
from hwnas.core.fit import fit as fit
from hwnas.core.genotype import Genotype as Genotype
from hwnas.core.guidance import SoftTargets as SoftTargets
from hwnas.core.profiling import profile as profile
from hwnas.core.progress import Progress as Progress
from hwnas.core.search import UnverifiedTableWarning as UnverifiedTableWarning
from hwnas.core.search import search as search
from hwnas.core.search_config import SearchConfig as SearchConfig
from hwnas.core.search_data import SearchData as SearchData
from hwnas.core.search_result import SearchResult as SearchResult
from hwnas.core.space import Metric as Metric
from hwnas.core.space import Preset as Preset
from hwnas.core.space import SearchSpace as SearchSpace
from hwnas.core.stability import Stability as Stability
from hwnas.core.stability import stability as stability
from hwnas.core.sweep import sweep as sweep
from hwnas.core.sweep_page import NoPlotWarning as NoPlotWarning
from hwnas.core.sweep_result import SweepPoint as SweepPoint
from hwnas.core.sweep_result import SweepResult as SweepResult
from hwnas.core.verification import verify as verify
from hwnas.errors import HwnasError as HwnasError
from hwnas.errors import SpaceError as SpaceError
from hwnas.latency.backend import LatencyBackend as LatencyBackend
from hwnas.latency.device import Device as Device
from hwnas.latency.fake import FakeBackend as FakeBackend
from hwnas.latency.measuring import ProfileSettings as ProfileSettings
from hwnas.latency.onnxruntime import OnnxRuntimeBackend as OnnxRuntimeBackend
from hwnas.latency.table import LatencyTable as LatencyTable
from hwnas.latency.tensorrt import TensorRTBackend as TensorRTBackend
from hwnas.latency.torch import TorchBackend as TorchBackend
from hwnas.latency.torch_compile import TorchCompileBackend as TorchCompileBackend
from hwnas.layers import Add as Add
from hwnas.layers import Concat as Concat
from hwnas.layers import Conv as Conv
from hwnas.layers import PoolLinear as PoolLinear
from hwnas.layers import Resize as Resize
from hwnas.names import find_backend as find_backend
from hwnas.names import find_space as find_space
from hwnas.names import space_of as space_of
from hwnas.ops import Op as Op
from hwnas.ops import OpKey as OpKey
from hwnas.ops import OpSpec as OpSpec
from hwnas.ops import register_op as register_op
from hwnas.record import record as record
from hwnas.segmentation.labels import VOID as VOID
from hwnas.segmentation.losses import OhemCrossEntropy as OhemCrossEntropy
from hwnas.segmentation.metrics import MeanIoU as MeanIoU
from hwnas.zoo import load as load

__version__ = "0.1.0"
