#!/usr/bin/env python3
"""Time the models of a bundle on this machine, which needs neither torch nor hwnas.

``hwnas profile SPACE --export-bundle DIR`` copies this file as ``run.py`` beside the models. Here it needs
Python 3.8 or later, numpy and onnxruntime; or numpy, TensorRT and pycuda::

    python3 run.py --estimate    # how long it would take
    python3 run.py               # measure; run it again to go on where it stopped

Raw readings go into ``results.json``; ``hwnas profile --import-bundle DIR --out TABLE`` makes a table of it.
What is read, in which order and when it is enough is decided as in hwnas.latency.interleaving and
hwnas.latency.stopping, and tests hold the two together.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import platform
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
"""Of the manifest that is read here and of the results that are written."""

_ESTIMATED_BY = 5  # models that an estimate loads and visits
_TELL_EVERY_SECONDS = 5.0
_WARM_UP_SECONDS = 0.2  # of a GPU, whose clocks rise slowly
_GPU_BLOCK_MS = 2.0
_ENQUEUE_SHARE = 0.8


class Refused(Exception):
    """What stops the runner; the text says what was expected and what mends it."""


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


# Bundle and results


def digest(content: Any) -> str:
    """SHA-256 of JSON content in one spelling: ``"sha256:…"``."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of this schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(f"there is no {path}. Copy the whole folder that hwnas wrote.") from None
    except ValueError as error:
        raise Refused(f"{path} is not complete JSON ({error}): was it truncated? Copy it again.") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise Refused(f"{path} is not of schema {SCHEMA_VERSION}: it belongs to another version of run.py.")
    return content


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the bundle in ``folder``, after all its models were verified."""
    manifest = load_json(folder / "manifest.json")
    bundle_id = manifest.pop("bundle_id", None)
    if digest(manifest) != bundle_id:
        raise Refused(f"{folder / 'manifest.json'} was altered after it was written. Copy the bundle again.")
    manifest["bundle_id"] = bundle_id
    for entry in manifest["entries"]:
        path = folder / entry["file"]
        if not path.is_file():
            raise Refused(f"the bundle is incomplete: there is no {path}. Copy the whole folder again.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            raise Refused(
                f"{path} is not the model that hwnas exported: its checksum differs. Copy it again."
            )
    return manifest


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step; a reader, or a power cut, finds the old file or the whole new one."""
    handle, temporary = tempfile.mkstemp(dir=str(path.parent), prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; results are copied by whoever fetches them.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


class Results:
    """The readings so far, of this process and of those before it, and the file that holds them.

    Args:
        path: the file; what it holds is gone on with.
        manifest: of the bundle.
        runtime: what readings are taken with here.
        rounds: how many are wanted of each entry.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], runtime: Any, rounds: int) -> None:
        self.path = path
        now = machine_state()
        conditions = {
            "device": runtime.device,
            "backend": runtime.backend,
            "threads": runtime.threads,
            "versions": runtime.versions,
            "settings": runtime.settings,
        }
        if path.exists():
            self.content = self._resumed(manifest, conditions)
        else:
            self.content = {
                "schema_version": SCHEMA_VERSION,
                "bundle_id": manifest["bundle_id"],
                "conditions": conditions,
                "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
                "processes": 0,
                "before": now,
                "after": now,
                "remarks": [],
                "entries": {},
            }
        self._altered = self.content.get("rounds") != rounds
        self.content["rounds"] = rounds
        self.entries: dict[str, dict[str, Any]] = self.content["entries"]
        for entry in manifest["entries"]:
            self.entries.setdefault(entry["name"], {"rounds_ms": [], "error": None})

    def _resumed(self, manifest: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
        content = load_json(self.path)
        checksum = content.pop("checksum", None)
        if digest(content) != checksum:
            raise Refused(f"{self.path} was altered after it was written. Delete it and measure again.")
        if content["bundle_id"] != manifest["bundle_id"]:
            raise Refused(
                f"{self.path} holds readings of another bundle ({content['bundle_id'][:15]}…) than this one "
                f"({manifest['bundle_id'][:15]}…). Give another file (--results), or delete that one."
            )
        lines = differences(content["conditions"], conditions)
        if lines:
            raise Refused(
                f"{self.path} was begun under other conditions, and readings of both do not mix (file "
                "against here):\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nGive another file (--results), or delete that one."
            )
        return content

    def missing(self, name: str) -> int:
        """Rounds of an entry that are still to be measured."""
        return max(0, int(self.content["rounds"]) - len(self.entries[name]["rounds_ms"]))

    def due(self) -> list[str]:
        """Entries that lack rounds, or failed the last time."""
        return [name for name in self.entries if self.missing(name) or self.entries[name]["error"]]

    def save_if_altered(self) -> None:
        """Write the file where other rounds were asked for than it says."""
        if self._altered:
            self.save()

    def save(self) -> None:
        """Write the file."""
        for entry in self.entries.values():
            shares = entry.get("rounds_by_run")
            if shares:
                # Counted here, not at each visit: an interruption between a round and its count parts them.
                shares[-1] = len(entry["rounds_ms"]) - sum(shares[:-1])
        self.content["after"] = machine_state()
        whole = {"checksum": digest(self.content), **self.content}
        write_atomically(self.path, json.dumps(whole, allow_nan=False).encode())


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What tells two sets of conditions apart, a line each; what could not be read matches anything."""
    lines = []
    for field in ("kind", "name", "cores", "flags", "compute_capability"):
        one, other = mine["device"].get(field), theirs["device"].get(field)
        if one and other and one != other:
            lines.append(f"device {field}: {one} against {other}")
    if mine["backend"] != theirs["backend"]:
        lines.append(f"backend: {mine['backend']} against {theirs['backend']}")
    if mine["threads"] != theirs["threads"] and mine["device"]["kind"] == "cpu":
        lines.append(f"threads: {mine['threads']} against {theirs['threads']}")
    for group in ("versions", "settings"):
        for name in sorted(set(mine[group]) | set(theirs[group])):
            one, other = mine[group].get(name, "none"), theirs[group].get(name, "none")
            # Python itself is on record but decides no number.
            if name != "python" and one != other:
                lines.append(f"{name}: {one} against {other}")
    return lines


# Machine


def read_text(path: str) -> str:
    """Content of a file of the operating system, or nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cpu_device(known_flags: Iterable[str]) -> dict[str, Any]:
    """This machine's CPU: name, cores, memory, and which of the instruction sets it has."""
    info = read_text("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    memory = re.search(r"^MemTotal:\s*(\d+) kB", read_text("/proc/meminfo"), re.MULTILINE)
    # ARM kernels name no model; their device tree names the board.
    board = read_text("/proc/device-tree/model").strip("\0\n ")
    fallback = board or platform.processor() or platform.machine() or "unknown CPU"
    return {
        "kind": "cpu",
        "name": name.group(1).strip() if name else fallback,
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory.group(1)) / 2**20, 1) if memory else None,
        "flags": [flag for flag in known_flags if flag in present],
    }


def cuda_device() -> dict[str, Any]:
    """The first CUDA device as the driver reports it, asked through its C interface: no package is needed."""
    import ctypes

    try:
        driver: Any = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Refused(f"there is no CUDA driver here ({error}). Use --provider cpu.") from error

    def call(name: str, *arguments: Any) -> None:
        status = getattr(driver, name)(*arguments)
        if status:
            raise Refused(f"the CUDA driver refuses {name} with error {status}. Is a device visible?")

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    call("cuInit", 0)
    device = ctypes.c_int()
    call("cuDeviceGet", ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(256)
    call("cuDeviceGetName", name, 256, device)
    memory = ctypes.c_size_t()
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    version = re.search(r"Kernel Module\s.*?(\d+\.\d+(?:\.\d+)?)", read_text("/proc/driver/nvidia/version"))
    # 16: streaming multiprocessors; 75 and 76: compute capability (CUdevice_attribute in cuda.h).
    return {
        "kind": "cuda",
        "name": name.value.decode(),
        "cores": attribute(16),
        "memory_gib": round(memory.value / 2**30, 1),
        "compute_capability": f"{attribute(75)}.{attribute(76)}",
        "driver": version.group(1) if version else None,
    }


def machine_state() -> dict[str, Any]:
    """What else the machine is doing; what cannot be read is None."""
    clocks = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", read_text("/proc/cpuinfo"), re.MULTILINE)
    state: dict[str, Any] = {
        "seconds": time.time(),
        "load_average": None,
        "cpu_mhz": round(statistics.mean(map(float, clocks)), 1) if clocks else None,
        "involuntary_switches": None,
    }
    with contextlib.suppress(OSError, AttributeError):
        state["load_average"] = os.getloadavg()[0]
    with contextlib.suppress(ImportError):
        import resource  # absent on Windows

        state["involuntary_switches"] = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return state


# Timing: the twin of hwnas.latency.interleaving, of .stopping and of the readers in .backend


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest of the sorted values."""
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def is_enough(rule: dict[str, Any], readings_ms: Sequence[float], seconds: float) -> bool:
    """Whether a visit with these readings, this long after its first, may end."""
    count = len(readings_ms)
    if count < rule["min_readings"]:
        return False
    all_equal = count > 1 and min(readings_ms) == max(readings_ms)
    if all_equal or count >= rule["max_readings"] or seconds >= rule["max_seconds"]:
        return True
    if seconds < rule["min_seconds"]:
        return False
    ordered = sorted(readings_ms)
    # The root is a median's standard error over that of a mean, for normal noise.
    half_width = (quantile(ordered, 0.84) - quantile(ordered, 0.16)) / 2
    error = math.sqrt(math.pi / 2) * half_width / math.sqrt(count)
    return bool(error <= rule["relative_noise"] * quantile(ordered, 0.5))


def visit(
    reader: Callable[[], float], rule: dict[str, Any], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Read once through: warm-up, then readings (milliseconds) until ``rule`` is content."""

    def read() -> float:
        value = reader()
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"a reading must be finite and above 0 ms; the runtime gave {value!r}")
        return value

    start = clock()
    for warmup in range(rule["warmup_readings"]):
        if warmup and clock() - start > rule["warmup_seconds"]:
            break
        read()
    readings: list[float] = []
    start = clock()
    while not readings or not is_enough(rule, readings, clock() - start):
        readings.append(read())
    return readings


def calls_per_block(block_ms: Callable[[int], float], min_block_ms: float) -> int:
    """How many calls a block needs to last ``min_block_ms``; warms up on the way."""
    block_ms(1)
    calls = 1
    while True:
        taken = block_ms(calls)
        if taken >= min_block_ms:
            return calls
        # Aim a fifth above, and at most tenfold at once: the first blocks still hold warm-up.
        calls = max(calls + 1, min(10 * calls, math.ceil(1.2 * calls * min_block_ms / max(taken, 1e-6))))


def host_clock(threads: int) -> tuple[str, Callable[[], int]]:
    """The clock for work on the CPU, as its name on record and a function that gives nanoseconds."""
    if threads == 1 and sys.platform in ("linux", "darwin"):
        return "CPU time of the thread", time.thread_time_ns
    return "wall", time.perf_counter_ns


def host_reader(
    run: Callable[[], object],
    clock_ns: Callable[[], int],
    finish: Callable[[], object] | None = None,
    min_block_ms: float = 0.5,
) -> Callable[[], float]:
    """A reader that times on the host: the mean over a block of back-to-back calls."""

    def block_ms(calls: int) -> float:
        start = clock_ns()
        for _ in range(calls):
            run()
        if finish is not None:
            finish()
        return (clock_ns() - start) / 1e6

    calls = calls_per_block(block_ms, min_block_ms)
    return lambda: block_ms(calls) / calls


def inputs_of(entry: dict[str, Any], seed: int, made: dict[Any, Any]) -> dict[str, Any]:
    """Values as they follow a ReLU, by input name; arrays of one shape are shared through ``made``."""
    import numpy as np

    inputs = {}
    for slot, described in enumerate(entry["inputs"]):
        key = (slot, tuple(described["shape"]), described["dtype"])
        if key not in made:
            values = np.random.default_rng(seed + slot).standard_normal(key[1], dtype=np.float32)
            made[key] = np.ascontiguousarray(np.maximum(values, 0).astype(described["dtype"]))
        inputs[described["name"]] = made[key]
    return inputs


# Runtimes. Each has device, backend, threads, versions, settings, remarks() and
# reader(model, inputs): a function whose one call gives milliseconds of one inference.


class OnnxRuntime:
    """ONNX Runtime on one execution provider, and on no other; buffers are bound, so nothing is copied."""

    backend = "onnxruntime"
    providers = {  # noqa: RUF012 - ClassVar would say no more here
        "cpu": "CPUExecutionProvider",
        "cuda": "CUDAExecutionProvider",
        "tensorrt": "TensorrtExecutionProvider",
    }

    def __init__(self, manifest: dict[str, Any], provider: str, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise Refused(f"{error}. Install it here:  pip install numpy onnxruntime") from error
        self._runtime: Any = onnxruntime
        self._provider = provider
        self._fp16 = manifest["precision"] == "fp16"
        self.threads = threads
        if self._fp16 and provider == "cpu" and platform.machine().lower() not in ("aarch64", "arm64"):
            raise Refused(
                f"ONNX Runtime has no fp16 kernels for {platform.machine()}: it would cast to fp32 and back, "
                "and the casts would be in the number. Export the bundle with --precision fp32."
            )
        available = onnxruntime.get_available_providers()
        if self.providers[provider] not in available:
            raise Refused(
                f"{self.providers[provider]} was asked for, and {self._distribution()} "
                f"{onnxruntime.__version__} has only {', '.join(available)}. Install the build of "
                "onnxruntime-gpu that is made for this device."
            )
        self.device = cpu_device(manifest["cpu_flags"]) if provider == "cpu" else cuda_device()
        # What a GPU does while the host waits is no CPU time.
        clock, self._clock_ns = host_clock(threads) if provider == "cpu" else ("wall", time.perf_counter_ns)
        self.versions = {
            "onnxruntime": f"{onnxruntime.__version__} ({self._distribution()})",
            "onnx_opset": str(manifest["opset"]),
        }
        self.settings = {"provider": provider, "clock": clock}
        if provider != "cpu":
            # By default; naming the option is refused by ONNX Runtime before 1.18, which boards have.
            self.settings["tf32"] = "allowed"
        if threads > 1:
            self.settings["spinning"] = "stopped after each run"

    @staticmethod
    def _distribution() -> str:
        found = []
        for name in ("onnxruntime", "onnxruntime-gpu"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                metadata.version(name)
                found.append(name)
        return " and ".join(found) or "onnxruntime"

    def remarks(self) -> list[str]:
        """None: whether a block is bound by its launches does not show by the host's clock."""
        return []

    def _session(self, model: bytes) -> Any:
        wanted = self.providers[self._provider]
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4 if self._provider == "cpu" else 3
        if self.threads > 1:
            # The pool of the session before must not spin on while this one is timed.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        providers: list[Any] = [wanted]
        if self._provider != "cpu":
            # A node that fell back to the CPU would bring two transfers into the number: fail instead.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            providers = [(wanted, {"device_id": "0"})]
        if self._provider == "tensorrt":
            # Alone: a node that TensorRT does not take must fail, not run on CUDA unseen.
            providers[0][1]["trt_fp16_enable"] = str(self._fp16)
        session = self._runtime.InferenceSession(model, options, providers=providers)
        running = session.get_providers()[0]
        if running != wanted:
            raise Refused(
                f"{wanted} was asked for, and ONNX Runtime would run on {running}: its libraries or the "
                "driver could not be loaded. Nothing was measured."
            )
        return session

    def reader(self, model: bytes, inputs: dict[str, Any]) -> Callable[[], float]:
        """A reader of a session with bound inputs and outputs."""
        session = self._session(model)
        where = "cpu" if self._provider == "cpu" else "cuda"
        binding = session.io_binding()
        bound = []
        # The model has only the inputs that it uses.
        for node in session.get_inputs():
            value = self._runtime.OrtValue.ortvalue_from_numpy(inputs[node.name], where, 0)
            # The value may share the array's memory: both must outlive the reader.
            bound.append((inputs[node.name], value))
            binding.bind_ortvalue_input(node.name, value)
        for node in session.get_outputs():
            binding.bind_output(node.name, where, 0)
        if self._provider == "cpu":
            return host_reader(_keeping(lambda: session.run_with_iobinding(binding), bound), self._clock_ns)
        run_options = self._runtime.RunOptions()
        run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return host_reader(
            _keeping(lambda: session.run_with_iobinding(binding, run_options), bound),
            self._clock_ns,
            finish=binding.synchronize_outputs,
            min_block_ms=_GPU_BLOCK_MS,
        )


def _keeping(run: Callable[[], object], alive: object) -> Any:
    """``run``, which holds on to ``alive``."""
    return lambda keep=alive: run()


class TensorRt:
    """TensorRT (8.5 or later) with pycuda's buffers, stream and events: blocks of enqueued inferences.

    The types are the model's own (strongly typed); TensorRT 8, which cannot, is allowed fp16 for a model in
    fp16.
    """

    backend = "tensorrt"
    threads = 1

    def __init__(self, manifest: dict[str, Any]) -> None:
        # Before TensorRT is touched, which does not survive a machine without a driver.
        self.device = cuda_device()
        try:
            import pycuda.autoinit  # makes the context in which all that follows lives
            import pycuda.driver
            import tensorrt
        except ImportError as error:
            raise Refused(
                f"{error}. --backend tensorrt needs TensorRT's Python package (on a Jetson part of JetPack) "
                "and pycuda:  pip install numpy pycuda"
            ) from error
        self._trt: Any = tensorrt
        self._cuda: Any = pycuda.driver
        self._logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        self._runtime = tensorrt.Runtime(self._logger)
        self._stream = pycuda.driver.Stream()
        self._fp16 = manifest["precision"] == "fp16"
        self._strong = hasattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        self._prepared = self._launch_bound = 0
        self.versions = {"tensorrt": tensorrt.__version__, "onnx_opset": str(manifest["opset"])}
        # TF32 is the builder's default, and no timing cache is handed to it.
        self.settings = {"cuda_graph": "False", "tf32": "allowed", "timing_cache": "False", "cache": "warm"}
        if not self._strong:
            # TensorRT then chooses precisions itself, as hwnas never lets it: no other table mixes with this.
            self.settings["typing"] = "weak"

    def remarks(self) -> list[str]:
        """How many models were bound by their launches."""
        if not self._launch_bound:
            return []
        return [
            f"{self._launch_bound} of {self._prepared} models were launch-bound: enqueueing took over "
            f"{_ENQUEUE_SHARE:.0%} of the device time, so their numbers are the CPU's."
        ]

    def _engine(self, model: bytes) -> Any:
        trt = self._trt
        builder = trt.Builder(self._logger)
        flags = trt.NetworkDefinitionCreationFlag
        network = builder.create_network(
            1 << int(flags.STRONGLY_TYPED if self._strong else flags.EXPLICIT_BATCH)
        )
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(model):
            raise RuntimeError("; ".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
        config = builder.create_builder_config()
        if self._fp16 and not self._strong:
            config.set_flag(trt.BuilderFlag.FP16)
        plan = builder.build_serialized_network(network, config)
        engine = self._runtime.deserialize_cuda_engine(plan) if plan is not None else None
        if engine is None:
            raise RuntimeError("TensorRT built no engine of it")
        return engine

    def reader(self, model: bytes, inputs: dict[str, Any]) -> Callable[[], float]:
        """A reader of an engine built here; building takes seconds to minutes."""
        engine = self._engine(model)
        context = engine.create_execution_context()
        buffers = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            size = math.prod(engine.get_tensor_shape(name)) * engine.get_tensor_dtype(name).itemsize
            buffer = self._cuda.mem_alloc(max(1, size))
            if name in inputs:
                self._cuda.memcpy_htod(buffer, inputs[name])
            context.set_tensor_address(name, int(buffer))
            buffers.append(buffer)
        start, end = self._cuda.Event(), self._cuda.Event()
        enqueue_share = 0.0

        def block_ms(calls: int, keep: object = (engine, buffers)) -> float:
            nonlocal enqueue_share
            # Nothing of what ran before may still be queued when the clock starts.
            self._stream.synchronize()
            before = time.perf_counter_ns()
            start.record(self._stream)
            accepted = True
            for _ in range(calls):
                accepted = context.execute_async_v3(self._stream.handle) and accepted
            end.record(self._stream)
            enqueued_ms = (time.perf_counter_ns() - before) / 1e6
            end.synchronize()
            if not accepted:
                raise RuntimeError("TensorRT did not accept an inference")
            taken_ms = float(start.time_till(end))
            enqueue_share = enqueued_ms / max(taken_ms, 1e-6)
            return taken_ms

        warm = time.perf_counter() + _WARM_UP_SECONDS
        while time.perf_counter() < warm:
            block_ms(1)
        calls = calls_per_block(block_ms, _GPU_BLOCK_MS)
        block_ms(calls)
        self._prepared += 1
        # A single launch says nothing: its enqueueing cannot overlap with anything.
        self._launch_bound += calls > 1 and enqueue_share > _ENQUEUE_SHARE
        return lambda: block_ms(calls) / calls


# The run


class Run:
    """One measurement of a bundle.

    Args:
        folder: of the bundle.
        manifest: of the bundle.
        runtime: what to take readings with.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], runtime: Any) -> None:
        self.folder = folder
        self.entries: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in manifest["entries"]}
        self.settings: dict[str, Any] = manifest["settings"]
        self.runtime = runtime
        self._inputs: dict[Any, Any] = {}

    def reader(self, name: str) -> Callable[[], float]:
        """The reader of an entry."""
        entry = self.entries[name]
        inputs = inputs_of(entry, self.settings["seed"], self._inputs)
        reader: Callable[[], float] = self.runtime.reader((self.folder / entry["file"]).read_bytes(), inputs)
        return reader

    def estimate_seconds(self, names: Sequence[str], rounds: int) -> float:
        """Seconds to load and measure ``names``, judged by loading and visiting a few of them."""
        step = max(1, len(names) // _ESTIMATED_BY)
        some = list(names[::step])[:_ESTIMATED_BY]
        spent = 0.0
        for name in some:
            start = time.perf_counter()
            with _naming(name):
                reader = self.reader(name)
                loaded = time.perf_counter()
                visit(reader, self.settings["rule"])
                spent += loaded - start + rounds * (time.perf_counter() - loaded)
        return spent * len(names) / max(1, len(some))

    def measure(self, results: Results) -> list[str]:
        """Measure what ``results`` lacks, in interleaved rounds; returns the names that gave no number."""
        due = results.due()
        if not due:
            results.save_if_altered()
            return []
        results.content["processes"] += 1
        for name in due:
            results.entries[name].setdefault("rounds_by_run", []).append(0)
        readers = self._readers(due, results)
        total = sum(results.missing(name) for name in readers)
        done = 0
        start = saved = told = time.monotonic()
        for index in range(results.content["rounds"]):
            visited = [
                name
                for name in readers
                if results.entries[name]["error"] is None and len(results.entries[name]["rounds_ms"]) <= index
            ]
            random.Random(f"{self.settings['seed']}:{index}").shuffle(visited)
            for name in visited:
                entry = results.entries[name]
                try:
                    readings = visit(readers[name], self.settings["rule"])
                except Exception as error:  # noqa: BLE001 - runtimes raise classes of their own
                    entry["error"] = f"{type(error).__name__}: {error}"
                    total -= results.missing(name) - 1
                else:
                    entry["rounds_ms"].append([round(value, 6) for value in readings])
                done += 1
                now = time.monotonic()
                if now - saved >= self.settings["save_every_seconds"]:
                    results.save()
                    saved = now
                if now - told >= _TELL_EVERY_SECONDS:
                    say(f"measured {done}/{total}, {minutes((now - start) / done * (total - done))} left")
                    told = now
        known = results.content["remarks"]
        known.extend(remark for remark in self.runtime.remarks() if remark not in known)
        results.save()
        return [name for name in self.entries if results.entries[name]["error"] is not None]

    def _readers(self, names: Sequence[str], results: Results) -> dict[str, Callable[[], float]]:
        """Readers of the entries that the runtime takes; ``results`` says why it does not take the others."""
        readers = {}
        start = told = time.monotonic()
        for number, name in enumerate(names, 1):
            results.entries[name]["error"] = None
            try:
                readers[name] = self.reader(name)
            except Refused:
                raise
            except Exception as error:  # noqa: BLE001 - runtimes raise classes of their own
                results.entries[name]["error"] = f"{type(error).__name__}: {error}"
            now = time.monotonic()
            if now - told >= _TELL_EVERY_SECONDS:
                left = (now - start) / number * (len(names) - number)
                say(f"loaded {number}/{len(names)}, {minutes(left)} left")
                told = now
        return readers


@contextlib.contextmanager
def _naming(name: str) -> Any:
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"{name} cannot be measured: {type(error).__name__}: {error}") from error


def minutes(seconds: float) -> str:
    """Minutes and seconds, as 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="run.py", description="Time the models of this bundle. Run again to go on where it stopped."
    )
    parser.add_argument("--backend", choices=["onnxruntime", "tensorrt"], default="onnxruntime")
    parser.add_argument(
        "--provider", choices=list(OnnxRuntime.providers), help="of ONNX Runtime [default: cpu]"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the CPU [default: 1]")
    parser.add_argument("--rounds", type=int, help="visits to each model [default: as exported]")
    parser.add_argument("--results", type=Path, help="file to fill [default: results.json beside this]")
    parser.add_argument("--estimate", action="store_true", help="say how long it would take, and stop")
    options = parser.parse_args(arguments)
    if options.threads < 1 or (options.rounds is not None and options.rounds < 1):
        parser.error("--threads and --rounds must be 1 or more")
    if options.backend == "tensorrt" and (options.provider or options.threads != 1):
        parser.error("--provider and --threads are for --backend onnxruntime")
    return options


def run(options: argparse.Namespace, folder: Path) -> int:
    """Do what the options say with the bundle in ``folder``; returns the exit code."""
    if importlib.util.find_spec("numpy") is None:
        raise Refused("numpy is not installed here. Install it:  pip install numpy onnxruntime")
    manifest = load_manifest(folder)
    runtime: Any
    if options.backend == "tensorrt":
        runtime = TensorRt(manifest)
    else:
        runtime = OnnxRuntime(manifest, options.provider or "cpu", options.threads)
    runtime.versions["python"] = platform.python_version()
    rounds = options.rounds or manifest["settings"]["rounds"]
    path = (options.results or folder / "results.json").absolute()
    if not path.parent.is_dir():
        raise Refused(f"there is no folder {path.parent} for the results. Make it, or mend --results.")
    results = Results(path, manifest, runtime, rounds)
    measurement = Run(folder, manifest, runtime)
    due = results.due()
    versions = ", ".join(f"{name} {version}" for name, version in sorted(runtime.versions.items()))
    say(f"{runtime.device['name']}: {runtime.backend} {manifest['precision']} ({versions})")
    say(f"{len(due)} of {len(measurement.entries)} models are to be measured, {rounds} rounds")
    if options.estimate:
        seconds = math.ceil(measurement.estimate_seconds(due, rounds))
        say(f"about {minutes(seconds)} to load and measure them, judged by {min(len(due), _ESTIMATED_BY)}")
        return 0
    try:
        failed = measurement.measure(results)
    except KeyboardInterrupt:
        results.save()
        say(f"stopped; what was measured is in {path}. The same command goes on from there.")
        return 130
    if failed:
        say(f"{len(failed)} of {len(measurement.entries)} models gave no number; all others are in {path}:")
        for name in failed:
            say(f"  {name} ({measurement.entries[name]['about']}): {results.entries[name]['error']}")
        return 2
    say(f"done: {path}. Bring it to the bundle's copy where hwnas is, and make the table:")
    say(f"  hwnas profile --import-bundle {folder.name} --results {path.name} --out TABLE")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parsed(arguments)
    # A service manager's stop saves as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(options, Path(__file__).resolve().parent)
    except Refused as error:
        say(str(error))
        return 2
    except OSError as error:
        say(f"{error}; name a path that can be read and written (--results).")
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
