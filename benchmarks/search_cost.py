"""What a search step costs: hard single-path sampling against the soft mixture, on AutoRTNet's paper space.

Each variant runs in a process of its own (peak memory belongs to a process), the steps of a group take turns,
and results are ratios. Groups, each a few minutes, whose results lie beside each other in one file:

- ``sampling``: a hard step, a soft step, and a soft step written in plain PyTorch (search_cost_twin.py);
- ``limit``: the operations that a step needs over the rate at which this machine multiplies matrices, both
  counted here, as the least seconds that the step could take;
- ``hard``, ``soft``: what each option gives (channels_last, bf16, recompute …);
- ``ops``: what was tried and left out: compiled ops, and candidates in one convolution;
- ``peer``: a hard step against NNI's GumbelDARTS, with all cells; needs ``--peer-python`` with nni==3.0.

Run:  python benchmarks/search_cost.py --group sampling --out benchmarks/results   (and the other groups)
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from result_files import slug, today, write_result_files
from search_cost_twin import Twin
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwnas import ArchParameters, SearchConfig, SearchData, assigned, derive
from hwnas.core.graphed import GraphedTask
from hwnas.core.monitors import Monitors
from hwnas.core.relaxation import Draw, GumbelSoftmax
from hwnas.core.score import ScoreFunction
from hwnas.core.search_loss import StepLoss
from hwnas.core.searched import Searched
from hwnas.core.training import GuardedStep
from hwnas.files import read_json
from hwnas.latency.device import Device
from hwnas.latency.fake import fake_table
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.autortnet.ops import CELL_OPS

SIZE = {"height": 180, "width": 240, "batch": 4}
TAU = 3.0
CLIP = 5.0
GROUPS = {
    # A hard step's cost depends on the depth drawn: four of them in each round.
    "sampling": {"hard": 4, "soft": 1, "twin": 1},
    "hard": {"hard": 4, "hard channels_last": 4, "hard bf16": 4, "hard channels_last bf16": 4},
    "soft": {"soft": 1, "soft channels_last": 1, "soft channels_last bf16": 1, "soft recompute": 1},
    "peer": {"deep hard": 4, "nni": 1},
}


def serve(step: Callable[[], None], about: dict[str, Any] | None = None) -> None:
    """Answer each line "step" with the seconds of one, and the end of input with the peak memory."""
    torch.set_num_threads(1)
    print(json.dumps({"before_mib": _peak_mib(), **(about or {})}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(time.perf_counter() - began, flush=True)
    print(_peak_mib(), flush=True)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def space_and_batch(size: dict[str, int] = SIZE) -> tuple[AutoRTNet, torch.Tensor, torch.Tensor]:
    """The paper's space at a size, and a batch for it."""
    torch.manual_seed(0)
    space = AutoRTNet.from_preset("paper", height=size["height"], width=size["width"])
    x = torch.rand(size["batch"], 3, size["height"], size["width"])
    y = torch.randint(space.num_classes, (size["batch"], size["height"], size["width"]))
    return space, x, y


def ours(options: set[str], size: dict[str, int] = SIZE, device: str = "cpu") -> Callable[[], None]:
    """A step as hwnas.search takes it: weights and choices, with all that choices learn by, and a table."""
    space, x, y = space_and_batch(size)
    config = SearchConfig(
        device=device,
        relaxation=GumbelSoftmax(hard="hard" in options),
        precision="bf16" if "bf16" in options else "fp32",
        channels_last="channels_last" in options,
        recompute="recompute" in options,
        gradient_clip=CLIP,
    )
    table = fake_table(space.record().keys(), input_shape=space.input_shape())
    searched = Searched.prepared(space, table, SearchData([(x, y)]), config)
    net, arch = searched.net.train(), searched.arch
    if "deep" in options:
        draw = arch.draw
        arch.draw = lambda *args, **kwargs: with_all_cells(arch, draw(*args, **kwargs))  # type: ignore[method-assign]
    step_loss = StepLoss(
        searched,
        ScoreFunction(arch, config.score_kinds, searched.recording),
        Monitors(searched).blindness,
        torch.Generator().manual_seed(0),
        GraphedTask(space, net, arch, config.precision) if "cuda_graph" in options else None,
    )
    weights = torch.optim.SGD(
        net.parameters(), lr=config.weight_lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    alphas = torch.optim.Adam(arch.parameters(), lr=config.arch_lr, betas=config.arch_betas)
    guarded = GuardedStep(net, clip=CLIP)
    batch = (x.to(device), y.to(device))

    def step() -> None:
        loss, _, _ = step_loss(batch, TAU)
        guarded(loss, weights, alphas)

    return step


def with_all_cells(arch: ArchParameters, draw: Draw) -> Draw:
    """``draw`` with every depth at its greatest."""
    assert draw.index is not None
    index = [
        len(choice.options) - 1 if choice.kind == "depth" else drawn
        for choice, drawn in zip(arch.choices, draw.index, strict=True)
    ]
    fixed = arch.one_hot({choice.name: k for choice, k in zip(arch.choices, index, strict=True)})
    return Draw(fixed.weights + (draw.weights - draw.weights.detach()), tuple(index))


def twin() -> Callable[[], None]:
    """The soft step in plain PyTorch."""
    space, x, y = space_and_batch()
    net = Twin(space.supernet()).train()
    own = list(net.network.parameters())
    weights = torch.optim.SGD(own, lr=0.01, momentum=0.9)
    alphas = torch.optim.Adam(net.alphas.parameters(), lr=1e-3)

    def step() -> None:
        loss = space.loss(net(x, TAU), y)
        weights.zero_grad()
        alphas.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(own, CLIP)
        weights.step()
        alphas.step()

    return step


def limit(draws: int = 32) -> dict[str, Any]:
    """The operations that steps need, and how many this machine does in a second.

    A convolution's two gradients take as many operations as itself each. Only matrix work counts: what also
    has to move through memory (batch norms, additions, the loss at full resolution) makes the limit lower
    than any step can be.
    """
    torch.set_num_threads(1)
    space, x, _ = space_and_batch()
    net = space.supernet().train()
    arch = ArchParameters(net)
    generator = torch.Generator().manual_seed(0)

    def operations(hard: bool) -> int:
        with (
            torch.no_grad(),
            FlopCounterMode(display=False) as counter,
            assigned(net, arch, arch.draw(GumbelSoftmax(hard=hard), TAU, generator)),
        ):
            net(x)
        return 3 * counter.get_total_flops()

    def weights_reached() -> int:
        index = arch.draw(GumbelSoftmax(), TAU, generator).index
        assert index is not None
        drawn = {choice.name: k for choice, k in zip(arch.choices, index, strict=True)}
        return sum(weight.numel() for weight in derive(net, drawn, affine=False).parameters())

    needed = {"hard": statistics.fmean(operations(True) for _ in range(draws)), "soft": operations(False)}
    reached = statistics.fmean(weights_reached() for _ in range(draws))
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - began)
    rate = 2 * 1024**3 / min(seconds)
    return {
        "matmul_gflop_per_second": rate / 1e9,
        "gflop_per_step": {name: value / 1e9 for name, value in needed.items()},
        "least_seconds": {name: value / rate for name, value in needed.items()},
        "million_weights_reached": {
            "hard": reached / 1e6,
            "soft": sum(weight.numel() for weight in net.parameters()) / 1e6,
        },
    }


def tried(times: int = 30) -> dict[str, float]:
    """Seconds of what was left out over seconds of what is done, forward and backward, by what and shape."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def seconds(module: Callable[[torch.Tensor], Any], x: torch.Tensor, weights: list[nn.Parameter]) -> float:
        found = []
        for _ in range(times + 5):
            began = time.perf_counter()
            outputs = module(x)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            found.append(time.perf_counter() - began)
            for tensor in (x, *weights):
                tensor.grad = None
        return statistics.median(found[5:])

    ratio = {}
    for channels, height, width in ((24, 23, 30), (72, 12, 15), (216, 6, 8)):
        x = torch.rand(SIZE["batch"], channels, height, width)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        where = f"{channels}×{height}×{width}"
        for name in ("conv_3x3", "sep_conv_3x3_x2"):
            op = CELL_OPS[name](channels, 1).to(memory_format=torch.channels_last)
            own = list(op.parameters())
            ratio[f"compiled {name}, {where}"] = seconds(torch.compile(op), x, own) / seconds(op, x, own)
        for kind, groups in (("", 1), (" depthwise", channels)):

            def conv(out: int, groups: int = groups, channels: int = channels) -> nn.Module:
                made = nn.Conv2d(channels, out, 3, padding=1, groups=groups, bias=False)
                return made.to(memory_format=torch.channels_last)

            two, one = [conv(channels), conv(channels)], conv(2 * channels)
            apart = seconds(lambda x, two=two: [each(x) for each in two], x, [each.weight for each in two])
            ratio[f"two{kind} convolutions in one, {where}"] = seconds(one, x, [one.weight]) / apart
    return ratio | optimisers(times)


def optimisers(times: int) -> dict[str, float]:
    """Seconds of a step of torch's faster optimisers over those of the plain one."""
    net = space_and_batch()[0].supernet()
    arch = ArchParameters(net)
    found = {}
    for what, kind, parameters in (
        ("weights, SGD", partial(torch.optim.SGD, lr=0.01, momentum=0.9), list(net.parameters())),
        ("choices, Adam", partial(torch.optim.Adam, lr=1e-3), list(arch.parameters())),
    ):
        for parameter in parameters:
            parameter.grad = torch.rand_like(parameter)
        steps = {form: kind(parameters, **{form: True}).step for form in ("foreach", "fused")}
        steps["plain"] = kind(parameters, foreach=False).step
        seconds: dict[str, list[float]] = {form: [] for form in steps}
        for _ in range(times + 5):
            for form, step in steps.items():
                began = time.perf_counter()
                step()
                seconds[form].append(time.perf_counter() - began)
        plain = statistics.median(seconds["plain"][5:])
        for form in ("foreach", "fused"):
            found[f"{form} optimiser of {what}"] = statistics.median(seconds[form][5:]) / plain
    return found


class Child:
    """A variant in a process of its own."""

    def __init__(self, name: str, python: str) -> None:
        script = Path(__file__).with_name("search_cost_nni.py") if name == "nni" else Path(__file__)
        self.process = subprocess.Popen(
            [
                python if name == "nni" else sys.executable,
                str(script),
                *(["--worker", name] * (name != "nni")),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        # What the interpreter, the libraries and the weights take before the first step.
        self.about = json.loads(self._answer())

    def step(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self._answer())

    def peak_mib(self) -> float:
        """Peak memory; the process ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a variant ended early; its message is above")
        return line


def measured(group: str, rounds: int, python: str) -> dict[str, Any]:
    """Seconds and memory of a group's variants, whose steps take turns; the first round is left out."""
    variants = GROUPS[group]
    children = {name: Child(name, python) for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, times in variants.items():
            for _ in range(times):
                value = children[name].step()
                if round_number:
                    seconds[name].append(value)
    return {
        name: {
            "steps": len(seconds[name]),
            "mean_seconds": statistics.fmean(seconds[name]),
            "median_seconds": statistics.median(seconds[name]),
            "step_mib": child.peak_mib() - child.about.pop("before_mib"),
            **child.about,
        }
        for name, child in children.items()
    }


def against(peer: dict[str, Any]) -> dict[str, Any]:
    """Of a comparison with a peer: the ratio, and how it was got."""
    mine, theirs = peer["deep hard"], peer["nni"]
    return {
        "seconds_of_nni_over_ours": theirs["mean_seconds"] / mine["mean_seconds"],
        "how": f"NNI {theirs['version']}: its mixed layers with Gumbel-softmax in the place of hwnas's "
        "choice blocks, the same ops on the same shapes, all cells in both; one forward and backward pass "
        f"and the two optimisers' steps, {theirs['steps']} steps of NNI's in turns with {mine['steps']} hard "
        "ones of hwnas, one thread. (NNI's strategy takes two such passes for a batch; one counts here.) "
        "`benchmarks/search_cost_nni.py`.",
    }


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """What is claimed, from what was measured; each ratio from one group."""

    def over(group: str, one: str, other: str, what: str) -> float:
        return found[group][one][what] / found[group][other][what]

    result = {}
    # Means where variants draw differently, medians where each step's work is the same in all.
    if "sampling" in found:
        result["soft / hard, seconds"] = over("sampling", "soft", "hard", "mean_seconds")
        result["soft / hard, memory of a step"] = over("sampling", "soft", "hard", "step_mib")
        result["soft / plain PyTorch, seconds"] = over("sampling", "soft", "twin", "median_seconds")
        if "limit" in found:
            for name in ("hard", "soft"):
                least = found["limit"]["least_seconds"][name]
                result[f"{name} / least, seconds"] = found["sampling"][name]["mean_seconds"] / least
    for group in ("hard", "soft"):
        for name in GROUPS[group] if group in found else ():
            if name != group:
                result[f"{name} / {group}, seconds"] = over(group, name, group, "median_seconds")
                result[f"{name} / {group}, memory of a step"] = over(group, name, group, "step_mib")
    if "peer" in found:
        result["NNI GumbelDARTS / hard, seconds"] = found["peer"]["seconds_of_nni_over_ours"]
    return result


def report(result: dict[str, Any]) -> str:
    """The result as a page."""
    lines = [
        "# What a search step costs",
        "",
        f"AutoRTNet, preset paper, {SIZE['height']}×{SIZE['width']}, batch {SIZE['batch']}, one thread of "
        f"{result['machine']}, torch {result['torch']}, {result['date']}. `benchmarks/search_cost.py`; the "
        "variants of a group ran in processes of their own, their steps in turns.",
        "",
        "| ratio | |",
        "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in result["ratios"].items()),
        "",
        "| group | variant | steps | mean s | median s | MiB of a step |",
        "|---|---|---|---|---|---|",
    ]
    for group in GROUPS:
        for name, row in result.get(group, {}).items() if group != "peer" else ():
            lines.append(
                f"| {group} | {name} | {row['steps']} | {row['mean_seconds']:.3f} | "
                f"{row['median_seconds']:.3f} | {row['step_mib']:.0f} |"
            )
    if "ops" in result:
        lines += ["", "| tried and left out | seconds over what is done |", "|---|---|"]
        lines += [f"| {name} | {value:.2f} |" for name, value in result["ops"].items()]
    if "peer" in result:
        lines += ["", result["peer"]["how"]]
    if "limit" in result:
        found = result["limit"]
        lines += [
            "",
            f"The limit: {found['gflop_per_step']['hard']:.1f} GFLOP for a hard step (mean of draws) and "
            f"{found['gflop_per_step']['soft']:.1f} for a soft one, convolutions and matrix products with "
            "their gradients; this thread multiplies matrices at "
            f"{found['matmul_gflop_per_second']:.0f} GFLOP/s. A hard step reaches "
            f"{found['million_weights_reached']['hard']:.1f} million weights, a soft one "
            f"{found['million_weights_reached']['soft']:.1f}: so many gradients travel between processes.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run a group, and write it beside what other groups found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--group", choices=["limit", "ops", *GROUPS], default="sampling")
    parser.add_argument("--rounds", type=int, default=8)
    name = Device.find("cpu").name
    parser.add_argument("--device-name", default=slug(name), help="for the name of the file")
    parser.add_argument(
        "--peer-python", default="", help="an interpreter with nni==3.0 and hwnas on its path"
    )
    parser.add_argument("--worker")
    options = parser.parse_args()
    if options.worker:
        serve(twin() if options.worker == "twin" else ours(set(options.worker.split())))
        return
    if options.group == "peer" and not options.peer_python:
        raise SystemExit("--group peer wants --peer-python: an interpreter that has nni==3.0")
    stem = options.out / f"search_cost_{options.device_name}_{today()}"
    path = stem.with_name(f"{stem.name}.json")
    result: dict[str, Any] = read_json(path) if path.is_file() else {}
    result |= {
        "question": "what a search step costs",
        "space": "autortnet, preset paper",
        **SIZE,
        "machine": name,
        "threads": 1,
        "torch": torch.__version__,
        "date": today(),
    }
    if options.group == "limit":
        result["limit"] = limit()
    elif options.group == "ops":
        result["ops"] = tried()
    else:
        result[options.group] = measured(options.group, options.rounds, options.peer_python)
    if options.group == "peer":
        result["peer"] = against(result["peer"])
    result["ratios"] = ratios(result)
    write_result_files(stem, result, report(result))


if __name__ == "__main__":
    main()
