"""A step of NNI's GumbelDARTS on the paper's space: a peer of benchmarks/search_cost.py, and optional.

NNI has no place among hwnas's dependencies: this runs in an environment of its own that has it, and hwnas
on its path (`benchmarks/search_cost.py --group peer --peer-python PYTHON`). NNI's own mixed layers compute
the step, with the ops and shapes of hwnas's supernet at its greatest depth. Of the two passes that its
strategy does for a batch (one for the architecture, one for the weights) one is timed.
"""

from __future__ import annotations

import warnings

import torch
from search_cost import SIZE, TAU, serve
from search_cost_twin import deepest
from torch import nn

from hwnas.core.choice import ChoiceBlock
from hwnas.search_spaces.autortnet import AutoRTNet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nni
    from nni.mutable import frozen_context
    from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer, GumbelSoftmax


def main() -> None:
    """Serve steps to the parent."""
    torch.manual_seed(0)
    space = AutoRTNet.from_preset("paper", height=SIZE["height"], width=SIZE["width"])
    alphas: dict[str, nn.Parameter] = {}
    softmax = GumbelSoftmax()
    softmax.tau = TAU

    def mixed(block: ChoiceBlock) -> nn.Module:
        name = block.choice.name.replace(".", "_")
        alpha = alphas.setdefault(name, nn.Parameter(torch.zeros(len(block.options))))
        paths = dict(zip(block.choice.options, block.options, strict=True))
        # NNI wants to know which path a dry run would take; the mixture does not use it.
        with frozen_context({name: block.choice.options[0]}):
            return DifferentiableMixedLayer(paths, alpha, softmax, name)

    net = deepest(space.supernet(), mixed).train()
    is_alpha = {id(alpha) for alpha in alphas.values()}
    own = [parameter for parameter in net.parameters() if id(parameter) not in is_alpha]
    weights = torch.optim.SGD(own, lr=0.01, momentum=0.9)
    arch = torch.optim.Adam(alphas.values(), lr=1e-3)
    x = torch.rand(SIZE["batch"], 3, SIZE["height"], SIZE["width"])
    y = torch.randint(space.num_classes, (SIZE["batch"], SIZE["height"], SIZE["width"]))

    def step() -> None:
        loss = space.loss(net(x), y)
        weights.zero_grad()
        arch.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(own, 5.0)
        weights.step()
        arch.step()

    serve(step, {"version": nni.__version__})


if __name__ == "__main__":
    main()
