"""One thread: the tests' networks are so small that more threads only wait for one another."""

import torch

torch.set_num_threads(1)
