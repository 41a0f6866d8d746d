"""What TensorRT can do on this machine, tried where it can do no harm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from hwnas.latency.tensorrt_package import Package


class Probe(BaseModel):
    """What a TensorRT package can do on this machine, tried in a process of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: str
    version: str | None = None
    """None where it cannot be imported."""
    builds: bool = False
    """Whether it builds an engine."""
    runs: bool = False
    """Whether it loads that engine on a GPU."""
    why: str = ""
    """Why not, and what to do; empty where it runs."""


@lru_cache
def probe(package: Package, timeout_s: float = 120.0) -> Probe:
    """Build and load the smallest engine in another process, and tell how far that came.

    Args:
        package: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        timeout_s: TensorRT's libraries are over a gigabyte, and slow to load the first time.
    """
    command = [sys.executable, "-W", "ignore", "-c", _PROBE, package]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Probe(package=package, why=f"importing and trying {package} took over {timeout_s:g} s.")
    # A line for each step that was reached: a crash keeps what was known before it.
    found: dict[str, Any] = {}
    for line in ran.stdout.splitlines():
        if line.startswith(_PROBE_MARK):
            found |= json.loads(line.removeprefix(_PROBE_MARK))
    if ran.returncode != 0 and not found.get("why"):
        last = ran.stderr.strip().splitlines()[-1:] or [""]
        found["why"] = f"it ended the process that tried it (exit status {ran.returncode}). {last[0]}".strip()
    # Of a line of TensorRT's log, CUDA's own sentence says it all.
    if cuda := re.search(r"cudaError \d+: [^()]+", found.get("why", "")):
        found["why"] = f"{cuda.group().strip()}."
    if not found.get("runs"):
        found["why"] = f"{found.get('why', '')} {_remedy(package, found)}".strip()
    return Probe(package=package, **found)


def _remedy(package: str, found: dict[str, Any]) -> str:
    if not found.get("version"):
        return f"Install it with:  pip install {package.replace('_', '-')}"
    if "driver" in found.get("why", "").lower():
        return "Install an NVIDIA driver that is new enough, or use a machine that has one: nvidia-smi tells."
    return f"Does this GPU and driver fit {package} {found['version']}? nvidia-smi shows both."


_PROBE_MARK = "hwnas-probe "

# One identity layer; every step that succeeded is printed at once.
_PROBE = f"""
import importlib, json, sys
def say(**what):
    print({_PROBE_MARK!r} + json.dumps(what), flush=True)
try:
    trt = importlib.import_module(sys.argv[1])
    say(version=str(trt.__version__))
except Exception as error:
    say(why=f"{{type(error).__name__}}: {{error}}.")
    sys.exit()
lines = []
class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, text):
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            lines.append(text)
log = Log()
try:
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    layer = network.add_identity(network.add_input("x", trt.float32, (1, 8)))
    network.mark_output(layer.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise RuntimeError("no engine was built")
    say(builds=True)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None or engine.create_execution_context() is None:
        raise RuntimeError("the engine that was built cannot be loaded")
    say(runs=True)
except Exception as error:
    say(why=(lines or [f"{{type(error).__name__}}: {{error}}"])[0] + ".")
"""
