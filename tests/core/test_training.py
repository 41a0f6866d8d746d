import torch
from torch import nn

from hwnas.core.training import reestimate_statistics

CPU = torch.device("cpu")


def test_statistics_become_the_plain_mean_over_the_batches():
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(99.0)
    # Means 2 and 6; unbiased variances 2 and 8.
    batches = [(torch.tensor([[1.0], [3.0]]), None), (torch.tensor([[4.0], [8.0]]), None)]
    batches = [(x, torch.zeros(2)) for x, _ in batches]
    reestimate_statistics(norm, batches, device=CPU)
    assert norm.running_mean.item() == 4.0
    assert norm.running_var.item() == 5.0
    assert norm.momentum == 0.1
    assert norm.training


def test_weights_stay_and_dropout_is_off():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    before = net[1].weight.clone()
    x = torch.randn(64, 2)
    reestimate_statistics(net, [(x, torch.zeros(64))], device=CPU)
    torch.testing.assert_close(net[2].running_mean, net[1](x).mean(dim=0).detach())
    assert torch.equal(net[1].weight, before)
    assert not net.training
    assert not net[2].training


def test_without_batches_nothing_changes():
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(3.0)
    reestimate_statistics(norm, [], device=CPU)
    assert norm.running_mean.item() == 3.0
    assert norm.momentum == 0.1
