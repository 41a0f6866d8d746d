"""The runner of a bundle: it decides as hwnas does, on machines that are imitated, with nothing of hwnas."""

import ast
import ctypes
import itertools
import platform
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hwnas.errors import BackendUnavailable, MeasurementFailed
from hwnas.latency import backend, device, edge_runner
from hwnas.latency.device import CPU_FLAGS, Device, DeviceState
from hwnas.latency.edge_runner import Refused
from hwnas.latency.interleaving import measure_interleaved
from hwnas.latency.measuring import ProfileSettings
from hwnas.latency.onnxruntime import OnnxRuntimeBackend
from hwnas.latency.stopping import StoppingRule, visit
from hwnas.latency.tensorrt import TensorRTBackend

SOURCE = Path(edge_runner.__file__).read_text()
MANIFEST = {"precision": "fp32", "opset": 17, "cpu_flags": list(CPU_FLAGS)}

X86 = """processor\t: 0
model name\t: AMD EPYC 7B13
cpu MHz\t\t: 2400.0
flags\t\t: fpu sse avx2 fma avx512f bf16_other

processor\t: 1
model name\t: AMD EPYC 7B13
cpu MHz\t\t: 2600.0
"""
PI = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid asimdrdm asimddp
CPU implementer\t: 0x41
"""


def test_the_source_is_python_3_8():
    ast.parse(SOURCE, feature_version=(3, 8))


def test_it_imports_the_standard_library_and_its_runtimes_alone():
    nodes = list(ast.walk(ast.parse(SOURCE)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    foreign = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"__future__"}
    assert foreign == {"numpy", "onnxruntime", "tensorrt", "pycuda"}


# Decided as hwnas decides


def random_readings(rng):
    """Readings of any number and noise, among them equal ones."""
    noise = rng.choice([0, 1e-4, 0.003, 0.02, 0.3])
    return [abs(rng.gauss(1, noise)) + 1e-9 for _ in range(rng.randint(0, 40))]


def random_rule(rng):
    few, many = sorted((rng.randint(1, 12), rng.randint(1, 40)))
    short, long = sorted((rng.uniform(0, 0.02), rng.uniform(0, 0.04)))
    return StoppingRule(
        warmup_readings=rng.randint(0, 3),
        warmup_seconds=rng.choice([0, 0.004, 1]),
        min_readings=few,
        max_readings=many,
        min_seconds=short,
        max_seconds=long,
        relative_noise=rng.choice([0, 0.001, 0.005, 0.05]),
    )


def test_the_stopping_rule_is_that_of_hwnas():
    rng = random.Random(0)
    answers = []
    for _ in range(3000):
        rule, readings, seconds = random_rule(rng), random_readings(rng), rng.uniform(0, 0.05)
        ours = edge_runner.is_enough(rule.model_dump(mode="json"), readings, seconds)
        assert ours == rule.is_enough(readings, seconds), (rule, readings, seconds)
        answers.append(ours)
    # Both answers occur often: the comparison compares something.
    assert 500 < sum(answers) < 2500


def test_the_stopping_rule_is_that_of_hwnas_to_a_hair():
    """A visit is enough at the same noise: found by halving, to the last digit of a float."""
    rng = random.Random(2)
    for _ in range(100):
        readings = [abs(rng.gauss(1, 0.02)) for _ in range(rng.randint(3, 25))]

        def least(enough, readings=readings):
            """The least noise that the rule still asks for where a visit with these readings is enough."""
            low, high = 0.0, 1.0
            for _ in range(60):
                noise = (low + high) / 2
                low, high = (low, noise) if enough(noise, readings) else (noise, high)
            return high

        def rule(noise):
            return StoppingRule(relative_noise=noise, min_seconds=0, max_seconds=1)

        ours = least(lambda noise, values: edge_runner.is_enough(rule(noise).model_dump(), values, 0.5))
        assert 0 < ours < 0.1
        assert ours == least(lambda noise, values: rule(noise).is_enough(values, 0.5))


def test_a_visit_is_that_of_hwnas():
    rng = random.Random(1)
    for _ in range(300):
        rule, values = random_rule(rng), [abs(rng.gauss(1, 0.01)) for _ in range(100)]
        step = rng.uniform(0.0001, 0.01)

        def clock(ticks, step=step):
            return lambda: next(ticks) * step

        ours = edge_runner.visit(
            iter(values).__next__, rule.model_dump(mode="json"), clock(itertools.count())
        )
        assert ours == visit(iter(values).__next__, rule, clock(itertools.count()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
def test_an_impossible_reading_is_refused_as_by_hwnas(bad):
    with pytest.raises(ValueError, match="must be finite and above 0 ms; the runtime gave"):
        edge_runner.visit(lambda: bad, StoppingRule().model_dump())
    with pytest.raises(MeasurementFailed, match="must be finite and above 0 ms"):
        visit(lambda: bad, StoppingRule())


@pytest.mark.parametrize("call_ms", [1e-7, 0.0003, 0.02, 0.4999, 0.5, 3.0])
def test_blocks_are_those_of_hwnas(call_ms):
    asked = []

    def block_ms(calls):
        asked.append(calls)
        return calls * call_ms

    ours = edge_runner.calls_per_block(block_ms, 0.5), list(asked)
    asked.clear()
    assert ours == (backend.calls_per_block(block_ms, 0.5), asked)


def test_the_reader_is_the_mean_of_a_block():
    # The clock is asked twice a block and moves 1 ms a call of run(): blocks of one call are long enough.
    now = itertools.count(step=1_000_000)
    ticks = SimpleNamespace(value=0)

    def run():
        ticks.value = next(now)

    for make in (edge_runner.host_reader, backend.host_reader):
        assert make(run, lambda: ticks.value)() == 1.0


def test_the_order_of_visits_is_that_of_hwnas(tmp_path):
    names = list("abcdefg")
    rule = StoppingRule(min_readings=2, max_readings=2)
    settings = ProfileSettings(rounds=4, rule=rule, seed=7)
    seen = []

    def reader(name):
        return lambda: seen.append(name) or 1.0

    theirs = measure_interleaved({name: reader(name) for name in names}, rule, 4, seed=7)
    expected = list(seen)
    seen.clear()
    runtime = FakeRuntime(lambda model: reader(model.decode()))
    entries = [{"name": name, "file": name, "inputs": [], "about": name} for name in names]
    for name in names:
        (tmp_path / name).write_text(name)
    manifest = {"bundle_id": "x", "entries": entries, "settings": settings.model_dump(mode="json")}
    results = edge_runner.Results(tmp_path / "results.json", manifest, runtime, 4)
    assert edge_runner.Run(tmp_path, manifest, runtime).measure(results) == []
    assert seen == expected
    ours = {name: tuple(map(tuple, entry["rounds_ms"])) for name, entry in results.entries.items()}
    assert ours == {name: found.readings_ms for name, found in theirs.items()}


class FakeRuntime:
    """Stands in for a runtime whose readers come from a function of the model's bytes."""

    backend, threads, versions, settings = "onnxruntime", 1, {}, {}
    device = {"kind": "cpu", "name": "some CPU"}  # noqa: RUF012

    def __init__(self, reader):
        self._reader = reader

    def reader(self, model, inputs):
        return self._reader(model)

    def remarks(self):
        return ["something to know"]


# Inputs


def entry(*shapes, dtype="float32"):
    return {
        "inputs": [{"name": f"input_{i}", "shape": list(s), "dtype": dtype} for i, s in enumerate(shapes)]
    }


def test_inputs_follow_a_relu():
    inputs = edge_runner.inputs_of(entry((1, 8, 32, 32), (1, 8, 32, 32)), 0, {})
    first, second = inputs["input_0"], inputs["input_1"]
    assert first.shape == (1, 8, 32, 32) and first.dtype == np.float32
    # Half of a normal distribution: mean 1/sqrt(2·pi) = 0.399 with the other half at zero.
    assert (first == 0).mean() == pytest.approx(0.5, abs=0.03)
    assert first.mean() == pytest.approx(0.399, abs=0.03) and first.min() == 0
    assert not np.array_equal(first, second)


def test_inputs_come_from_the_seed_and_are_shared():
    made = {}
    one = edge_runner.inputs_of(entry((1, 4)), 3, made)["input_0"]
    assert edge_runner.inputs_of(entry((1, 4), (2, 4)), 3, made)["input_0"] is one
    assert np.array_equal(edge_runner.inputs_of(entry((1, 4)), 3, {})["input_0"], one)
    assert not np.array_equal(edge_runner.inputs_of(entry((1, 4)), 4, {})["input_0"], one)
    assert edge_runner.inputs_of(entry((1, 4), dtype="float16"), 3, made)["input_0"].dtype == np.float16


# Machines


def imitate(monkeypatch, files):
    """Both sides read these files instead of the operating system's."""
    monkeypatch.setattr(device, "_read_text", lambda path: files.get(path, ""))
    monkeypatch.setattr(edge_runner, "read_text", lambda path: files.get(path, ""))


@pytest.mark.parametrize(
    ("files", "name", "flags"),
    [
        (
            {"/proc/cpuinfo": X86, "/proc/meminfo": "MemTotal: 2097152 kB"},
            "AMD EPYC 7B13",
            ("avx2", "avx512f"),
        ),
        (
            {"/proc/cpuinfo": PI, "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"},
            "Raspberry Pi 5 Model B Rev 1.0",
            ("asimd", "asimddp"),
        ),
        ({}, platform.processor() or platform.machine(), ()),
    ],
    ids=["x86", "pi", "nothing"],
)
def test_a_cpu_has_one_fingerprint(monkeypatch, files, name, flags):
    imitate(monkeypatch, files)
    theirs = Device.model_validate(edge_runner.cpu_device(CPU_FLAGS))
    assert theirs == device._cpu_device()
    assert (theirs.name, theirs.flags) == (name, flags)


def test_this_cpu_has_one_fingerprint():
    assert Device.model_validate(edge_runner.cpu_device(CPU_FLAGS)) == device.here()[0]


def test_the_state_of_the_machine(monkeypatch):
    state = DeviceState.model_validate(edge_runner.machine_state())
    assert state.seconds > 1e9
    imitate(monkeypatch, {"/proc/cpuinfo": X86})
    assert edge_runner.machine_state()["cpu_mhz"] == 2500.0


ORIN = Device(kind="cuda", name="Orin", cores=16, memory_gib=30, compute_capability="8.7", driver="540.4.0")


class Driver:
    """Imitates the C interface of the CUDA driver: an Orin."""

    def __init__(self, fail=None):
        self.fail = fail

    def __getattr__(self, function):
        def call(*arguments):
            if function == self.fail:
                return 100
            first = arguments[0]
            if function == "cuDeviceGetName":
                first.value = b"Orin"
            elif function == "cuDeviceTotalMem_v2":
                first._obj.value = 30 * 2**30
            elif function == "cuDeviceGetAttribute":
                first._obj.value = {16: 16, 75: 8, 76: 7}[arguments[1]]
            return 0

        return call


def test_a_gpu_is_asked_through_the_driver(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    imitate(monkeypatch, {"/proc/driver/nvidia/version": "NVRM version: Kernel Module  540.4.0  Release"})
    found = Device.model_validate(edge_runner.cuda_device())
    assert found == ORIN
    assert found.answers_to("orin")


def test_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(fail="cuInit"))
    with pytest.raises(Refused, match="the CUDA driver refuses cuInit with error 100"):
        edge_runner.cuda_device()

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(Refused, match=r"no CUDA driver here \(libcuda.so.1: cannot open.*--provider cpu"):
        edge_runner.cuda_device()


# ONNX Runtime


def assert_conditions_are_those_of(theirs, ours):
    assert (ours.backend, ours.versions, ours.settings) == (theirs.name, theirs.versions(), theirs.settings())
    assert ours.threads == theirs.threads and theirs.device.matches(Device.model_validate(ours.device))


@pytest.mark.parametrize("threads", [1, 2])
def test_conditions_are_those_of_the_backend(threads):
    pytest.importorskip("onnxruntime")
    theirs = OnnxRuntimeBackend("cpu", threads=threads)
    ours = edge_runner.OnnxRuntime(MANIFEST, "cpu", threads)
    assert_conditions_are_those_of(theirs, ours)
    assert Device.model_validate(ours.device) == theirs.device


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_conditions_on_a_gpu_are_those_of_the_backend(monkeypatch, provider, threads):
    onnxruntime = pytest.importorskip("onnxruntime")
    listed = list(edge_runner.OnnxRuntime.providers.values())
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert_conditions_are_those_of(
        OnnxRuntimeBackend(ORIN, threads=threads, provider=provider),
        edge_runner.OnnxRuntime(MANIFEST, provider, threads),
    )


def test_fp16_is_refused_where_hwnas_refuses_it(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(Refused, match=r"no fp16 kernels for x86_64.*Export the bundle with --precision fp32"):
        edge_runner.OnnxRuntime({**MANIFEST, "precision": "fp16"}, "cpu", 1)
    with pytest.raises(BackendUnavailable, match="no fp16 kernels for x86_64"):
        OnnxRuntimeBackend("cpu", precision="fp16").check()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    edge_runner.OnnxRuntime({**MANIFEST, "precision": "fp16"}, "cpu", 1)


def test_a_provider_that_is_not_there_is_refused(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(Refused, match=r"CUDAExecutionProvider was asked for, and onnxruntime.* has only CPU"):
        edge_runner.OnnxRuntime(MANIFEST, "cuda", 1)


def test_a_session_that_runs_elsewhere_is_refused(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    asked = {}

    def session(model, options, providers):
        asked["providers"] = providers
        asked["fallback"] = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: list(edge_runner.OnnxRuntime.providers.values())
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    runtime = edge_runner.OnnxRuntime(MANIFEST, "tensorrt", 1)
    assert runtime.settings == {"provider": "tensorrt", "clock": "wall", "tf32": "allowed"}
    with pytest.raises(Refused, match=r"TensorrtExecutionProvider was asked for, and .* would run on CPU"):
        runtime.reader(b"", {})
    assert asked == {
        "fallback": "1",
        "providers": [
            ("TensorrtExecutionProvider", {"device_id": "0", "trt_fp16_enable": "False"}),
        ],
    }


def test_onnxruntime_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Refused, match="Install it here:  pip install numpy onnxruntime"):
        edge_runner.OnnxRuntime(MANIFEST, "cpu", 1)


# TensorRT: imitated, for there is none here


class FakeTensorRt:
    """Enough of tensorrt and pycuda.driver that a reader can be made; an inference takes ``call_ms``."""

    def __init__(self, monkeypatch, *, strong=True, call_ms=3.0, parses=True):
        self.call_ms, self.parses = call_ms, parses
        self.flags, self.precision_flags, self.copied, self.addresses, self.queued = [], [], [], {}, 0
        creation = SimpleNamespace(EXPLICIT_BATCH=0, **({"STRONGLY_TYPED": 1} if strong else {}))
        tensorrt = SimpleNamespace(
            __name__="tensorrt",
            __version__="10.3.0" if strong else "8.5.2",
            Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None}),
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: self.engine()),
            Builder=lambda logger: SimpleNamespace(
                create_network=self.flags.append,
                create_builder_config=lambda: SimpleNamespace(set_flag=self.precision_flags.append),
                build_serialized_network=lambda network, config: b"plan",
            ),
            BuilderFlag=SimpleNamespace(FP16="fp16"),
            NetworkDefinitionCreationFlag=creation,
            OnnxParser=lambda network, logger: SimpleNamespace(
                parse=lambda model: self.parses, num_errors=1, get_error=lambda index: "no such operator"
            ),
        )
        driver = SimpleNamespace(
            Stream=lambda: SimpleNamespace(handle=5, synchronize=lambda: None),
            Event=lambda: self.event(),
            mem_alloc=lambda size: size,
            memcpy_htod=lambda buffer, array: self.copied.append((buffer, array.nbytes)),
        )
        pycuda = SimpleNamespace(autoinit=SimpleNamespace(), driver=driver)
        for name, module in {
            "tensorrt": tensorrt,
            "pycuda": pycuda,
            "pycuda.autoinit": pycuda.autoinit,
            "pycuda.driver": driver,
        }.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
        monkeypatch.setattr(edge_runner, "_WARM_UP_SECONDS", 0)

    def event(self):
        def record(stream):
            moment.at = self.queued * self.call_ms

        moment = SimpleNamespace(record=record, synchronize=lambda: None, at=0.0)
        moment.time_till = lambda end: end.at - moment.at
        return moment

    def engine(self):
        names = ["input", "output"]
        shapes = {"input": (1, 2, 3), "output": (1, 5)}

        def execute(stream):
            self.queued += 1
            return True

        return SimpleNamespace(
            num_io_tensors=2,
            get_tensor_name=names.__getitem__,
            get_tensor_shape=shapes.__getitem__,
            get_tensor_dtype=lambda name: SimpleNamespace(itemsize=4),
            create_execution_context=lambda: SimpleNamespace(
                set_tensor_address=self.addresses.__setitem__, execute_async_v3=execute
            ),
        )


INPUTS = {"input": np.ones((1, 2, 3), np.float32)}


def test_tensorrt_times_a_block_of_enqueued_inferences(monkeypatch):
    fake = FakeTensorRt(monkeypatch)
    runtime = edge_runner.TensorRt(MANIFEST)
    reader = runtime.reader(b"model", INPUTS)
    before = fake.queued
    # One inference of 3 ms is longer than the shortest block of 2 ms.
    assert reader() == 3.0 and fake.queued == before + 1
    # 6 and 5 values of 4 bytes; a fake buffer is its size.
    assert fake.addresses == {"input": 24, "output": 20} and fake.copied == [(24, 24)]
    assert fake.flags == [1 << 1] and fake.precision_flags == []
    assert runtime.versions == {"tensorrt": "10.3.0", "onnx_opset": "17"}
    assert "typing" not in runtime.settings and runtime.device["name"] == "Orin"
    assert runtime.remarks() == []


def test_conditions_in_tensorrt_are_those_of_the_backend(monkeypatch):
    FakeTensorRt(monkeypatch)
    # As it runs without graphs and without a cache of timings, which the runner has not.
    theirs = TensorRTBackend(ORIN, cuda_graph=False, timing_cache=False)
    assert_conditions_are_those_of(theirs, edge_runner.TensorRt(MANIFEST))


def test_tensorrt_8_is_allowed_fp16_for_a_model_in_fp16(monkeypatch):
    fake = FakeTensorRt(monkeypatch, strong=False)
    edge_runner.TensorRt({**MANIFEST, "precision": "fp16"}).reader(b"model", INPUTS)
    assert (fake.flags, fake.precision_flags) == ([1 << 0], ["fp16"])
    runtime = edge_runner.TensorRt(MANIFEST)
    runtime.reader(b"model", INPUTS)
    assert fake.precision_flags == ["fp16"] and runtime.settings["typing"] == "weak"


def test_tensorrt_says_which_models_are_bound_by_their_launches(monkeypatch):
    # Enqueueing in Python takes longer than a nanosecond a call.
    FakeTensorRt(monkeypatch, call_ms=1e-6)
    monkeypatch.setattr(edge_runner, "_GPU_BLOCK_MS", 1e-5)
    runtime = edge_runner.TensorRt(MANIFEST)
    runtime.reader(b"model", INPUTS)
    assert runtime.remarks()[0].startswith("1 of 1 models were launch-bound: enqueueing took over 80%")


def test_tensorrt_says_what_it_cannot_parse(monkeypatch):
    FakeTensorRt(monkeypatch, parses=False)
    with pytest.raises(RuntimeError, match="no such operator"):
        edge_runner.TensorRt(MANIFEST).reader(b"model", INPUTS)


def test_tensorrt_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(Refused, match="needs TensorRT's Python package"):
        edge_runner.TensorRt(MANIFEST)


# Conditions that do not mix


def conditions(**changes):
    device = {"kind": "cpu", "name": "Cortex-A76", "cores": 4, "flags": ["asimd"], "memory_gib": 7.8}
    base = {"backend": "onnxruntime", "threads": 1, "versions": {"onnxruntime": "1.19", "python": "3.8"}}
    device_changes = {name: changes.pop(name) for name in list(changes) if name in device}
    return {**base, "settings": {"clock": "wall"}, "device": {**device, **device_changes}, **changes}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "Cortex-A72"}, "device name: Cortex-A76 against Cortex-A72"),
        ({"cores": 8}, "device cores: 4 against 8"),
        ({"flags": ["asimd", "sve"]}, "device flags: ['asimd'] against ['asimd', 'sve']"),
        ({"backend": "tensorrt"}, "backend: onnxruntime against tensorrt"),
        ({"threads": 4}, "threads: 1 against 4"),
        ({"versions": {"onnxruntime": "1.20"}}, "onnxruntime: 1.19 against 1.20"),
        ({"settings": {}}, "clock: wall against none"),
        ({"memory_gib": 7.7}, None),
        ({"flags": []}, None),
        ({"versions": {"onnxruntime": "1.19", "python": "3.11"}}, None),
    ],
)
def test_what_keeps_readings_apart(changes, line):
    assert edge_runner.differences(conditions(), conditions(**changes)) == ([line] if line else [])


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads and --rounds must be 1 or more"),
        (["--rounds", "0"], "--threads and --rounds must be 1 or more"),
        (["--backend", "tensorrt", "--provider", "cpu"], "are for --backend onnxruntime"),
    ],
)
def test_options_that_make_no_sense(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        edge_runner.parsed(arguments)
    assert message in capsys.readouterr().err


def test_minutes_and_seconds():
    assert [edge_runner.minutes(seconds) for seconds in (0.4, 65, 3600)] == ["0:00", "1:05", "60:00"]
